"""Pixels of a DICOM radiograph, with the display window that the file specifies."""

import io
import threading
import warnings

import numpy as np
import pydicom
from pydicom.pixels import apply_modality_lut, pixel_array

from boneage_jax.data.headers import check_size

# Python's warning filters are per process, not per thread.
_WARNINGS = threading.Lock()


def read_dicom(data: bytes) -> tuple[np.ndarray, tuple[float, float] | None]:
    """Reads a single-frame image.

    Rescale slope and intercept (or the modality table) are applied. MONOCHROME1, where low values
    are bright, is inverted within its own range.

    Args:
      data: contents of the file.

    Returns:
      The values, float32 [H, W], or uint8 [H, W, 3] RGB; and the window `(black, white)` in units
      of these values, None if the file specifies none.

    Raises:
      ValueError: not DICOM, no pixels, several frames, too large, or compressed in a way that no
        installed decoder supports.
    """
    with _WARNINGS, warnings.catch_warnings():
        # Radiographs violate the standard in harmless ways; serious faults raise.
        warnings.simplefilter("ignore")
        try:
            dataset = pydicom.dcmread(io.BytesIO(data), force=True)
        except Exception as error:  # pydicom raises many types on damaged files
            raise ValueError(f"it is not a readable DICOM file: {error}") from error
        if "PixelData" not in dataset:
            raise ValueError("the DICOM file holds no image, or is cut short")
        try:
            frames = int(dataset.get("NumberOfFrames") or 1)
            check_size(int(dataset.get("Columns") or 0), int(dataset.get("Rows") or 0))
            photometric = str(dataset.get("PhotometricInterpretation", ""))
        except TypeError as error:
            raise ValueError(f"the DICOM file is damaged: {error}") from error
        if frames != 1:
            raise ValueError(f"the DICOM file holds {frames} frames; one radiograph is one frame")
        if photometric not in ("MONOCHROME1", "MONOCHROME2") and not photometric.startswith(
            ("RGB", "YBR")
        ):
            raise ValueError(f"photometric interpretation {photometric!r} is not supported")
        try:
            pixels = pixel_array(dataset)
            if pixels.ndim == 3:
                return pixels, None
            values = np.asarray(apply_modality_lut(pixels, dataset), np.float32)
            window = _window(dataset)
        except Exception as error:
            syntax = dataset.file_meta.get("TransferSyntaxUID") if dataset.file_meta else None
            name = f" ({syntax.name})" if syntax and syntax.is_compressed else ""
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(
                f"the DICOM pixels{name} cannot be decoded: {reason}; convert the file to PNG"
            ) from error
    if photometric == "MONOCHROME1":
        mirror = float(values.min() + values.max())
        values = mirror - values
        window = window and (mirror - window[1], mirror - window[0])
    return values, window


def _window(dataset: pydicom.Dataset) -> tuple[float, float] | None:
    """Returns the first window of the file (DICOM PS3.3, C.11.2.1.2: linear)."""
    center, width = dataset.get("WindowCenter"), dataset.get("WindowWidth")
    if center in (None, "") or width in (None, ""):
        return None
    if isinstance(center, pydicom.multival.MultiValue):
        center = center[0]
    if isinstance(width, pydicom.multival.MultiValue):
        width = width[0]
    middle, half = float(center) - 0.5, (float(width) - 1) / 2
    return (middle - half, middle + half) if half > 0 else None

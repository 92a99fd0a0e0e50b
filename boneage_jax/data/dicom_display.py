"""From the stored values of a DICOM image to those that are displayed, as 8-bit grey.

The order is that of PS3.4, N.2: modality (values that mean something), values of interest (a window
or a table), presentation (inversion). pydicom's own tables wrap around where entries have 8 bits
and values more, and take no modality table of 10 or 12 bits, so tables are looked up here.
"""

from typing import Any

import cv2
import numpy as np
import pydicom
from pydicom.pixels import apply_color_lut, apply_rescale

from boneage_jax.data import notes
from boneage_jax.data.grey import luma, scale, stretch, to_8_bit

MONOCHROME = ("MONOCHROME1", "MONOCHROME2")
COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "PALETTE COLOR")
_FEW = 32  # grey levels


def show_grey(dataset: pydicom.Dataset, stored: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Displays a monochrome image.

    Values without a usable window or table are kept if they are 8-bit values, else scaled by their
    range (`to_8_bit`).

    Args:
      dataset: the file.
      stored: stored values [H, W].

    Returns:
      (uint8 [H, W], notes).

    Raises:
      ValueError: a kind that is not supported, or values that are not finite.
    """
    if "PresentationLUTSequence" in dataset:
        raise ValueError("a Presentation LUT Sequence, which belongs to prints, is not supported")
    padding = _padding(dataset, stored)
    shown = None if padding is None else ~padding
    values = _modality(dataset, stored)
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are not finite")
    shape = str(dataset.get("PresentationLUTShape") or "").strip().upper()
    inverted = dataset.PhotometricInterpretation == "MONOCHROME1" or shape == "INVERSE"
    said: list[str] = []
    image = _values_of_interest(dataset, values, shown, inverted, said)
    if image is None:
        keep = dataset.BitsStored >= 8 if "BitsStored" in dataset else True
        image, ranged = to_8_bit(values, shown=shown, inverted=inverted, keep=keep)
        said += [notes.NO_WINDOW] * ranged
    said += [notes.INVERTED] * inverted
    if padding is not None:
        image = np.where(padding, np.uint8(0), image)
        said.append(notes.PADDED)
    return image, said


def show_colours(dataset: pydicom.Dataset, pixels: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Displays a colour image, [H, W, 3] RGB or [H, W] indices of a palette, as its luma.

    Returns:
      (uint8 [H, W], notes).

    Raises:
      ValueError: values with a sign.
      Exception: of several types, if the palette is damaged.
    """
    if pixels.dtype.kind == "i":
        raise ValueError("the DICOM file is damaged: its colours have a sign")
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)[..., :3]
        if pixels.dtype != np.uint8:  # which entries of 8 bits may fill as well (C.7.6.3.1.5)
            pixels = scale(pixels, 0, 2 ** dataset.RedPaletteColorLookupTableDescriptor[2] - 1)
    colours, ranged = to_8_bit(pixels)
    return luma(np.ascontiguousarray(colours[..., ::-1])), [notes.NO_WINDOW] * ranged


def _padding(dataset: pydicom.Dataset, stored: np.ndarray) -> np.ndarray | None:
    """Returns which pixels are padding (PS3.3, C.7.5.1.1.2), bool [H, W]; None if none is."""
    value, limit = dataset.get("PixelPaddingValue"), dataset.get("PixelPaddingRangeLimit")
    if not isinstance(value, int) or stored.dtype.kind not in "iu":
        return None
    # A sign that the pixels do not have, or lack, is no other value: the bits are meant.
    unsigned = np.dtype(f"u{stored.dtype.itemsize}")
    ends = [
        int(np.array(end % (np.iinfo(unsigned).max + 1), unsigned).astype(stored.dtype))
        for end in (value, limit if isinstance(limit, int) else value)
    ]
    found = (stored >= min(ends)) & (stored <= max(ends))
    return found if found.any() else None


def _modality(dataset: pydicom.Dataset, stored: np.ndarray) -> np.ndarray:
    """Applies the modality table, or slope and intercept: float32, or float64 where it takes it."""
    if (table := _first(dataset, "ModalityLUTSequence")) is not None:
        values, _ = _look_up(table, stored, dataset)
    else:
        source = _of_frame(dataset, "PixelValueTransformationSequence")
        if None in (source.get("RescaleSlope", 1), source.get("RescaleIntercept", 0)):
            raise ValueError("the DICOM file is damaged: Rescale Slope or Intercept is empty")
        values = apply_rescale(stored, source)
    single = values.astype(np.float32)
    return single if np.array_equal(single, values) else values.astype(np.float64)


def _values_of_interest(
    dataset: pydicom.Dataset,
    values: np.ndarray,
    shown: np.ndarray | None,
    inverted: bool,
    said: list[str],
) -> np.ndarray | None:
    """Applies the first table or window; None if there is none that can be used."""
    source = _of_frame(dataset, "FrameVOILUTSequence")
    try:
        centers, widths = _numbers(source, "WindowCenter"), _numbers(source, "WindowWidth")
        if (table := _first(source, "VOILUTSequence")) is not None:
            looked_up, bits = _look_up(table, np.floor(values), dataset)
            grey = stretch(looked_up, 0, 2**bits - 1)
            alternatives = len(source.VOILUTSequence)
        elif centers or widths:
            function = source.get("VOILUTFunction")
            grey = _window(values, centers[0], widths[0], function)
            alternatives = len(centers)
        else:
            return None
        if inverted:
            # In the range that it uses: a window that is wider than the values darkens no picture
            # more for being stored inverted.
            used = grey if shown is None else grey[shown]
            grey = np.clip(used.min() + used.max() - grey, 0, 255)
        image = np.rint(grey).astype(np.uint8)
        pixels, before = (image, values) if shown is None else (image[shown], values[shown])
        levels = np.count_nonzero(cv2.calcHist([pixels], [0], None, [256], (0, 256)))
        if levels < 2:
            raise ValueError("it shows nothing")
    except MemoryError:
        raise
    except Exception:  # pydicom raises many types on damaged elements
        said.append(notes.UNUSABLE_WINDOW)
        return None
    said += [notes.SEVERAL_WINDOWS] * (alternatives > 1)
    if levels < _FEW and levels < np.unique(before).size / 2:
        said.append(notes.FEW_LEVELS)
    return image


def _window(values: np.ndarray, center: float, width: float, function: str | None) -> np.ndarray:
    """Applies a window (PS3.3, C.11.2.1.2 and C.11.2.1.3); floats of 0 to 255."""
    function = (function or "LINEAR").strip().upper()
    if function == "SIGMOID":
        if not width > 0:
            raise ValueError("the width of a window must be above 0")
        return 127.5 * (1 + np.tanh(2 * (values - center) / width))
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    elif function != "LINEAR_EXACT":
        raise ValueError(f"VOI LUT Function {function}")
    if not width > 0:
        raise ValueError("the width of a window must be above 0, of a linear one above 1")
    return stretch(values, center - width / 2, center + width / 2)


def _look_up(
    table: pydicom.Dataset, values: np.ndarray, dataset: pydicom.Dataset
) -> tuple[np.ndarray, int]:
    """Returns the entries of a table for whole numbers, and the bits of an entry (C.11.1.1)."""
    count, first, bits = (int(number) for number in table.LUTDescriptor)
    count = count % 65536 or 65536
    order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
    data = table.LUTData
    words = np.frombuffer(data, f"{order}u2") if isinstance(data, bytes) else np.atleast_1d(data)
    entries = words.astype("<u2")
    if len(entries) < count and bits <= 8:  # two in each word
        entries = entries.view(np.uint8)
    if len(entries) < count or not 1 <= bits <= 16:
        raise ValueError(f"a table of {len(entries)} entries, its descriptor says {count}")
    return entries[np.clip(values.astype(np.int64) - first, 0, count - 1)], bits


def _of_frame(dataset: pydicom.Dataset, macro: str) -> pydicom.Dataset:
    """Returns where enhanced objects keep what others keep at the top: the item of the frame."""
    for groups in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        group = _first(dataset, groups)
        item = None if group is None else _first(group, macro)
        if item is not None:
            return item
    return dataset


def _first(dataset: pydicom.Dataset, name: str) -> pydicom.Dataset | None:
    sequence = dataset.get(name)
    if not sequence:
        return None
    if not isinstance(sequence, pydicom.Sequence):
        raise ValueError(f"the DICOM file is damaged: {name} is no sequence")
    return sequence[0]


def _numbers(dataset: pydicom.Dataset, name: str) -> list[float]:
    value: Any = dataset.get(name)
    if value is None or value == "":
        return []
    numbers = value if isinstance(value, pydicom.multival.MultiValue) else [value]
    if not all(isinstance(number, int | float) for number in numbers):
        raise ValueError(f"{name} is no number")
    return [float(number) for number in numbers]

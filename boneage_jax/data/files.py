"""Reads radiographs as grey uint8 and fits them into a square."""

import os
from pathlib import Path

import cv2
import numpy as np

from boneage_jax.data.headers import check, sniff
from boneage_jax.errors import InputError

_FORMATS = "PNG, JPEG, TIFF or DICOM"
_TAIL = 0.1  # percent of pixels clipped at each end when 16 bits become 8
_MAX_BYTES = 1 << 30

# Whatever OpenCV would print about a broken file is raised as an exception here.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


class UnreadableImage(InputError):
    """A file is not a complete, readable image; `name` identifies it, `reason` explains why."""

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def read_grey(source: str | os.PathLike[str] | bytes, name: str = "") -> np.ndarray:
    """Reads a radiograph as 8-bit grey.

    The format is detected from the content, not from the name. Colour becomes luma (BT.601), with
    transparency over black. EXIF rotation of a JPEG is applied. Eight-bit values are kept
    unchanged, also inside a 16-bit file (maximum <= 255). Deeper ones are scaled linearly: by the
    window of a DICOM file if it specifies a usable one, else from the 0.1th percentile (0) to the
    99.9th (255), so that a few burnt-in white pixels cannot darken the hand.

    Args:
      source: path of the file, or its content.
      name: name in error messages; the path if empty.

    Returns:
      uint8 [H, W].

    Raises:
      UnreadableImage: the file is missing, empty, truncated, damaged or not an image, or has
        several DICOM frames or more than 100 million pixels.
    """
    name = name or ("image" if isinstance(source, bytes) else str(source))
    try:
        data = source if isinstance(source, bytes) else _read_bytes(Path(source))
        if not data:
            raise ValueError("the file is empty")
        form = sniff(data)
        if not form and Path(name).suffix.lower() in (".dcm", ".dicom"):
            form = "dicom"  # old files lack the 128-byte preamble
        if not form:
            raise ValueError(f"the content is not {_FORMATS}")
        return _decode_dicom(data) if form == "dicom" else _decode(data, form)
    except ValueError as error:
        raise UnreadableImage(name, str(error)) from error
    except OSError as error:
        raise UnreadableImage(name, error.strerror or str(error)) from error
    except cv2.error as error:
        raise UnreadableImage(name, f"the image is damaged: {error.err}") from error
    except MemoryError as error:
        raise UnreadableImage(name, "not enough memory to decode it") from error


def read_radiograph(
    source: str | os.PathLike[str] | bytes, name: str = ""
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Reads a radiograph as `read_grey` does, with what a user must know of how it was read.

    Returns:
      (uint8 [H, W], notes in plain words, none for an ordinary file).

    Raises:
      UnreadableImage: see `read_grey`.
    """
    return read_grey(source, name), ()


def fit_square(image: np.ndarray, size: int) -> np.ndarray:
    """Fits an image into a square: aspect ratio kept, centred, padded.

    Shrinking averages areas, enlarging is bilinear. The padding is the median of the image's border
    on the two padded sides: radiographs have black or white backgrounds, and black bars beside a
    bright one would look like the edges of a collimator.

    Args:
      image: uint8 [H, W].
      size: side of the square, pixels.

    Returns:
      uint8 [size, size].

    Raises:
      ValueError: an array of another dtype or rank, an empty one, or `size` < 1.
    """
    if image.ndim != 2 or image.dtype != np.uint8 or not image.size or size < 1:
        raise ValueError(
            f"need uint8 [H, W] and size >= 1, got {image.dtype} {image.shape}, {size}"
        )
    height, width = image.shape
    top, left, new_height, new_width = placement(height, width, size)
    if (new_height, new_width) != (height, width):
        method = cv2.INTER_AREA if size < max(height, width) else cv2.INTER_LINEAR
        image = cv2.resize(image, (new_width, new_height), interpolation=method)
    if new_height == new_width:
        return np.ascontiguousarray(image)
    edges = image[[0, -1], :] if new_height < size else image[:, [0, -1]]
    square = np.full((size, size), np.uint8(np.median(edges)))
    square[top : top + new_height, left : left + new_width] = image
    return square


def placement(height: int, width: int, size: int) -> tuple[int, int, int, int]:
    """Returns where `fit_square` puts an image: (top, left, height, width), pixels."""
    scale = size / max(height, width)
    new_height = min(size, max(1, round(height * scale)))
    new_width = min(size, max(1, round(width * scale)))
    return (size - new_height) // 2, (size - new_width) // 2, new_height, new_width


def _read_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size > _MAX_BYTES:
            raise ValueError("the file is larger than 1 GiB")
        return file.read()


def _decode(data: bytes, form: str) -> np.ndarray:
    check(data, form)
    # UNCHANGED keeps alpha and depth, and ignores EXIF rotation, which only photographs have.
    flags = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH if form == "jpeg" else cv2.IMREAD_UNCHANGED
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if image is None or not image.size:
        raise ValueError(f"the {form.upper()} file is damaged")
    if image.ndim == 2:
        return _to_8_bit(image)
    alpha = image[..., -1] if image.shape[-1] in (2, 4) else None
    colours = _to_8_bit(image[..., :3] if image.shape[-1] > 2 else image[..., :1])
    grey = cv2.cvtColor(colours, cv2.COLOR_BGR2GRAY) if colours.shape[-1] == 3 else colours[..., 0]
    if alpha is None:
        return grey
    opacity = alpha.astype(np.float32) / {"uint8": 255, "uint16": 65535}.get(alpha.dtype.name, 1)
    return np.rint(grey * opacity).astype(np.uint8)


def _decode_dicom(data: bytes) -> np.ndarray:
    from boneage_jax.data.dicom import read_dicom  # importing pydicom takes 0.3 s

    values, window = read_dicom(data)
    if values.ndim == 3:
        return cv2.cvtColor(_to_8_bit(values), cv2.COLOR_RGB2GRAY)
    if window:
        image = _scale(values, *window)
        if image.min() < image.max():
            return image
    return _to_8_bit(values)


def _to_8_bit(image: np.ndarray) -> np.ndarray:
    if image.dtype == np.uint8:
        return np.ascontiguousarray(image)
    if not np.isfinite(image).all():
        raise ValueError("it holds values that are not finite")
    low, high = image.min(), image.max()
    if low >= 0 and high <= 255 and (image.dtype.kind in "iu" or high > 1):
        return image.astype(np.uint8)
    black, white = np.percentile(image, (_TAIL, 100 - _TAIL))
    if black == white:
        black, white = float(low), float(high)
    return _scale(image, black, white)


def _scale(image: np.ndarray, black: float, white: float) -> np.ndarray:
    """Maps black..white to 0..255, clipped and rounded; a constant image becomes 0."""
    scaled = (image.astype(np.float32) - np.float32(black)) * np.float32(
        255 / max(white - black, 1e-6)
    )
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)

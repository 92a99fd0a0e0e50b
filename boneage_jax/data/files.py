"""Reads radiographs as grey uint8 and fits them into a square."""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from boneage_jax.data import notes
from boneage_jax.data.grey import to_grey
from boneage_jax.data.headers import sniff
from boneage_jax.data.pictures import read_picture
from boneage_jax.errors import InputError

_FORMATS = "PNG, JPEG, TIFF or DICOM"
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

    The format is detected from the content, not from the name; docs/images.md says which kinds are
    read. Colour becomes luma (BT.601), with transparency over black. EXIF rotation of a JPEG is
    applied. A DICOM file is shown as its tables or its first window say. Else eight-bit values are
    kept unchanged, also inside a deeper file (whole numbers up to 255), and deeper ones are scaled
    from the 0.1th percentile (0) to the 99.9th (255), so that a few burnt-in white pixels cannot
    darken the hand.

    Args:
      source: path of the file, or its content.
      name: name in error messages; the path if empty.

    Returns:
      uint8 [H, W].

    Raises:
      UnreadableImage: the file is missing, empty, truncated, damaged or not an image, of a kind
        that cannot be read right, or has several DICOM frames or more than 100 million pixels.
    """
    return read_radiograph(source, name)[0]


def read_radiograph(
    source: str | os.PathLike[str] | bytes, name: str = ""
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Reads a radiograph as `read_grey` does, and says what a reader of its result should know.

    Args:
      source: path of the file, or its content.
      name: name in error messages; the path if empty.

    Returns:
      (uint8 [H, W], notes of `boneage_jax.data.notes`, most files have none).

    Raises:
      UnreadableImage: see `read_grey`.
    """
    if not isinstance(source, bytes | str | os.PathLike):
        raise UnreadableImage(f"a {type(source).__name__}", "give the path of a file")
    name = name or ("image" if isinstance(source, bytes) else os.fsdecode(source) or "''")
    with as_unreadable(name):
        data = source if isinstance(source, bytes) else read_bytes(Path(os.fsdecode(source)))
        form = sniff(data)
        if not form and Path(name).suffix.lower() in (".dcm", ".dicom"):
            form = "dicom"
        if not form:
            raise ValueError(f"the content is not {_FORMATS}")
        if form == "dicom":
            from boneage_jax.data.dicom import read_dicom  # importing pydicom takes 0.3 s

            image, said = read_dicom(data)
        else:
            image, said = to_grey(read_picture(data, form))
    return image, (*said, *notes.of_pixels(image))


@contextlib.contextmanager
def as_unreadable(name: str) -> Iterator[None]:
    """Raises what a damaged or unsupported file raises in the block as `UnreadableImage`."""
    try:
        yield
    except ValueError as error:
        raise UnreadableImage(name, " ".join(str(error).split())) from error
    except OSError as error:
        raise UnreadableImage(name, error.strerror or str(error)) from error
    except cv2.error as error:
        raise UnreadableImage(name, f"the image is damaged: {error.err}") from error
    except MemoryError as error:
        raise UnreadableImage(name, "not enough memory to decode it") from error


def read_bytes(path: Path) -> bytes:
    """Returns the content of a file.

    Raises:
      ValueError: it is larger than 1 GiB, or a pipe or device, whose reading may never end.
      OSError: it cannot be read.
    """
    found = path.stat()
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        raise ValueError("it is a pipe or device, not a file")
    if found.st_size > _MAX_BYTES:
        raise ValueError("the file is larger than 1 GiB")
    return path.read_bytes()


def fit_square(image: np.ndarray, size: int, fit: str = "pad") -> np.ndarray:
    """Fits an image into a square.

    Shrinking averages areas, enlarging is bilinear.

    Args:
      image: uint8 [H, W].
      size: side of the square, pixels.
      fit: 'pad' keeps the aspect ratio and pads both sides with the median of the image's border
        there: radiographs have black or white backgrounds, and black bars beside a bright one would
        look like the edges of a collimator. 'stretch' resizes height and width to `size` each.

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
    top, left, new_height, new_width = placement(height, width, size, fit)
    image = resize(image, new_height, new_width)
    if new_height == new_width:
        return np.ascontiguousarray(image)
    edges = image[[0, -1], :] if new_height < size else image[:, [0, -1]]
    square = np.full((size, size), np.uint8(np.median(edges)))
    square[top : top + new_height, left : left + new_width] = image
    return square


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes [H, W]: an axis that shrinks averages areas, one that grows is bilinear."""
    smaller = min(height, image.shape[0]), min(width, image.shape[1])
    # One axis may grow while the other shrinks; OpenCV averages areas only if none grows.
    for shape, method in ((smaller, cv2.INTER_AREA), ((height, width), cv2.INTER_LINEAR)):
        if image.shape != shape:
            image = cv2.resize(image, shape[::-1], interpolation=method)
    return image


def placement(height: int, width: int, size: int, fit: str = "pad") -> tuple[int, int, int, int]:
    """Returns where `fit_square` puts an image: (top, left, height, width), pixels."""
    if fit == "stretch":
        return 0, 0, size, size
    scale = size / max(height, width)
    new_height = min(size, max(1, round(height * scale)))
    new_width = min(size, max(1, round(width * scale)))
    return (size - new_height) // 2, (size - new_width) // 2, new_height, new_width

"""What `read_radiograph` has to say of a picture that it read: short phrases, all of them here."""

import math
from collections.abc import Iterable

import numpy as np

NO_WINDOW = "no window: scaled by its range"
UNUSABLE_WINDOW = "its window cannot be used"
FEW_LEVELS = "its window leaves under 32 grey levels"
SEVERAL_WINDOWS = "several windows: the first is used"
INVERTED = "inverted by its tag"
PADDED = "padding is black"
BITS = "bits above Bits Stored are used"
OBLONG = "its pixels are not square"
EXCESS = "more pixel data than its size"
FLAT = "all pixels have one value"
SMALL = "under 200 px on its short side"

SMALL_SIDE = 200  # pixels: what a network gets of a smaller picture is mostly interpolated
_TINY_SIDE = 40  # pixels: less than the smallest network reads
_TINY_PART = 0.27  # of the side of the stored images that a network was trained on
_TOO_SMALL = "px on its short side: too small"


def first_page(pages: int) -> str:
    """Returns the note on a file of several pages, of which the first is read."""
    return f"first page of {pages}"


def of_pixels(image: np.ndarray) -> tuple[str, ...]:
    """Returns the notes on the pixels of a picture, uint8 [H, W], whatever it was read from."""
    flat = bool(image.size) and int(image.min()) == int(image.max())
    return (*[FLAT] * flat, *[SMALL] * (min(image.shape[:2]) < SMALL_SIDE))


def tiny_side(image_size: int) -> int:
    """Returns the least short side in pixels of a picture whose age is accepted.

    At 80 of 299 px intervals of 95 % still hold 94 %, at 60 px 88 % (docs/robustness.md).

    Args:
      image_size: side of the images that the network was trained on, in pixels.
    """
    return max(_TINY_SIDE, math.ceil(_TINY_PART * image_size))


def too_small(shape: tuple[int, ...], image_size: int) -> tuple[str, ...]:
    """Returns the note on a picture, [H, W], that is smaller than `tiny_side`."""
    least = tiny_side(image_size)
    return (f"under {least} {_TOO_SMALL}",) if min(shape[:2]) < least else ()


def is_too_small(notes: Iterable[str]) -> bool:
    """Returns whether that of `too_small` is among the notes on a picture."""
    return any(note.endswith(_TOO_SMALL) for note in notes)

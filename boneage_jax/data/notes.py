"""What `read_radiograph` has to say of a picture that it read: short phrases, all of them here."""

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
TINY = "under 40 px on its short side: too small"

SMALL_SIDE = 200  # pixels: what a network gets of a smaller picture is mostly interpolated
TINY_SIDE = 40  # pixels: less than the smallest network reads


def first_page(pages: int) -> str:
    """Returns the note on a file of several pages, of which the first is read."""
    return f"first page of {pages}"


def of_pixels(image: np.ndarray) -> tuple[str, ...]:
    """Returns the notes on the pixels of a picture, uint8 [H, W], whatever it was read from."""
    flat = bool(image.size) and int(image.min()) == int(image.max())
    return (*[FLAT] * flat, *[SMALL] * (min(image.shape[:2]) < SMALL_SIDE))

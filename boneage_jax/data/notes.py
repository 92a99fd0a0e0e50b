"""What `read_radiograph` has to say of a picture that it read: short phrases, all of them here."""

NO_WINDOW = "no window: scaled by its range"
EMPTY_WINDOW = "its window shows nothing: scaled by its range"
SEVERAL_WINDOWS = "several windows: the first is used"
INVERTED = "inverted by its tag"
PADDED = "padding left out"
SMALL = "under 200 px on its short side"

SMALL_SIDE = 200  # pixels: what is enlarged to the size of a network lacks its detail


def first_page(pages: int) -> str:
    """Returns the note on a file of several pages."""
    return f"first page of {pages}"

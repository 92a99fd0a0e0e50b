"""Notes on what is too small follow from what the network was trained on."""

import numpy as np
import pytest

from boneage_jax.data.notes import FLAT, SMALL, is_too_small, of_pixels, tiny_side, too_small


@pytest.mark.parametrize(("image_size", "least"), [(64, 40), (148, 40), (299, 81), (512, 139)])
def test_the_least_side_is_a_part_of_the_stored_images(image_size, least):
    assert tiny_side(image_size) == least
    (note,) = too_small((500, least - 1), image_size)
    assert note == f"under {least} px on its short side: too small"
    assert too_small((least, 500), image_size) == ()
    assert is_too_small(["x", note]) and not is_too_small(["x", SMALL])


def test_notes_of_pixels():
    assert of_pixels(np.arange(40_000).reshape(200, 200).astype(np.uint8)) == ()
    assert of_pixels(np.full((300, 199), 3, np.uint8)) == (FLAT, SMALL)
    assert of_pixels(np.zeros((0, 5), np.uint8)) == (SMALL,)

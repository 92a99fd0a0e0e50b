"""Stresses against NumPy, Pillow and the numbers that their names promise."""

import numpy as np
import pytest
from PIL import Image

from boneage_jax.evaluation.stresses import STRESSES, rotated
from tfds_rsna.hand_phantom.render import make_phantom

IMAGE = np.ascontiguousarray(make_phantom(3, 128).image[:, :100])


def drawn(name, image=IMAGE, seed=0):
    return STRESSES[name].draw(image, np.random.default_rng(seed))


@pytest.mark.parametrize("name", STRESSES)
def test_every_stress_gives_an_image_and_leaves_its_own(name):
    before = IMAGE.copy()
    found = drawn(name)
    assert found.dtype == np.uint8 and found.ndim == 2 and found.flags.c_contiguous
    np.testing.assert_array_equal(IMAGE, before)
    np.testing.assert_array_equal(found, drawn(name))
    assert (name == "untouched") == np.array_equal(found, IMAGE)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mirrored", np.fliplr(IMAGE)),
        ("inverted", 255 - IMAGE),
        ("turned by 90", np.rot90(IMAGE)),
        ("turned by 180", np.rot90(IMAGE, 2)),
        ("turned by 270", np.rot90(IMAGE, 3)),
        ("turned by 90, inverted", 255 - np.rot90(IMAGE)),
        ("gamma 2", np.rint((IMAGE / 255) ** 2 * 255)),
        ("doubled", np.hstack([IMAGE, np.fliplr(IMAGE)])),
        ("white frame", np.pad(IMAGE, 8, constant_values=255)),
    ],
)
def test_exact_stresses(name, expected):
    np.testing.assert_array_equal(drawn(name), expected)


@pytest.mark.parametrize("angle", [10, -10, 45, 135, 315])
def test_turns_are_those_of_pillow(angle):
    turned = Image.fromarray(IMAGE).rotate(angle, Image.Resampling.BILINEAR)
    # A pixel along edges, where interpolation differs.
    assert np.abs(rotated(IMAGE, angle).astype(int) - np.asarray(turned)).mean() < 2


def test_sizes_and_amounts():
    grey = np.full((200, 200), 128, np.uint8)
    assert drawn("noise of sd 12", grey).std() == pytest.approx(12, rel=0.05)
    assert drawn("half resolution").shape == (64, 50)
    corner = drawn("half size in a corner", grey)
    assert (corner == 128).sum() == 100 * 100 and (corner == 0).sum() == 3 * 100 * 100
    marked = drawn("marker", grey)
    assert 20 < (marked > 128).sum() < 0.02 * grey.size

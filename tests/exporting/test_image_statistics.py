"""The statistics in a graph are those that NumPy and OpenCV compute for `predict`."""

import jax
import numpy as np
import pytest

from boneage_jax.exporting.image_statistics import distance, image_statistics
from boneage_jax.inference import calibration
from tfds_rsna.hand_phantom.render import make_phantom


@pytest.mark.parametrize("side", [24, 64, 96, 128, 192, 300])
def test_equal_at_every_size(side):
    rng = np.random.default_rng(0)
    images = [make_phantom(0, side).image.reshape(side, side), np.zeros((side, side), np.uint8)]
    images += [rng.integers(0, 256, (side, side)).astype(np.uint8), np.eye(side, dtype=np.uint8)]
    wanted = np.stack([calibration.image_statistics(image) for image in images])
    found = jax.jit(image_statistics)(np.stack(images)[..., None])
    np.testing.assert_allclose(found, wanted, atol=2e-3)


def test_equal_distances():
    hands = [make_phantom(n, 64).image.reshape(64, 64) for n in range(40)]
    ages = np.linspace(0, 200, 40)
    fitted = calibration.Calibration.fit(ages, ages, hands)
    others = [hands[0], np.full((64, 64), 90, np.uint8), hands[1].T.copy()]
    found = distance(np.stack(others)[..., None], fitted.mean, fitted.precision)
    np.testing.assert_allclose(found, fitted.distance(others), rtol=1e-3, atol=1e-3)

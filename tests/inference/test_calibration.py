"""Intervals against conformal theory; acceptance of hands and of what is none."""

import numpy as np
import pytest

from boneage_jax.errors import InputError
from boneage_jax.inference.calibration import Calibration, image_statistics
from tfds_rsna.hand_phantom.render import make_phantom


@pytest.fixture(scope="module")
def hands():
    return [make_phantom(index, 96, "train").image for index in range(120)]


@pytest.fixture(scope="module")
def calibration(hands):
    rng = np.random.default_rng(0)
    return Calibration.fit(rng.normal(0, 10, 120), np.zeros(120), hands)


def test_intervals_cover_what_they_promise():
    """Mean coverage over many calibrations of 99 images is 95/100 by conformal theory."""
    rng = np.random.default_rng(0)
    image = [make_phantom(0, 64).image] * 2
    covered = []
    for _ in range(300):
        seen = rng.standard_t(3, 99)
        width = Calibration.fit(seen, np.zeros(99), image).half_width
        covered.append((np.abs(rng.standard_t(3, 200)) <= width).mean())
    assert np.mean(covered) == pytest.approx(0.95, abs=0.01)


def test_other_hands_are_accepted(calibration):
    others = [make_phantom(index, 96, "test").image for index in range(60)]
    assert (calibration.distance(others) <= calibration.max_distance).mean() > 0.95


@pytest.mark.parametrize("kind", ["blank", "noise", "gradient", "checkers"])
def test_what_is_no_radiograph_is_not_accepted(calibration, kind):
    odd = {
        "blank": np.full((96, 96), 40, np.uint8),
        "noise": np.random.default_rng(0).integers(0, 256, (96, 96), dtype=np.uint8),
        "gradient": np.tile(np.linspace(0, 255, 96).astype(np.uint8), (96, 1)),
        "checkers": ((np.indices((96, 96)).sum(0) // 12 % 2) * 255).astype(np.uint8),
    }
    assert calibration.distance([odd[kind]])[0] > calibration.max_distance


def test_statistics_do_not_see_exposure(hands):
    image = (hands[3] // 2 + 20).astype(np.uint8)
    np.testing.assert_allclose(
        image_statistics(255 - image), image_statistics(image), rtol=1e-3, atol=1e-3
    )


def test_a_saved_calibration_is_the_same_and_a_damaged_one_is_named(calibration, hands, tmp_path):
    path = tmp_path / "calibration.npz"
    calibration.save(path)
    loaded = Calibration.load(path)
    np.testing.assert_array_equal(loaded.distance(hands[:3]), calibration.distance(hands[:3]))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match=r"calibration\.npz is damaged"):
        Calibration.load(path)
    path.unlink()
    with pytest.raises(InputError, match="has not ended"):
        Calibration.load(path)

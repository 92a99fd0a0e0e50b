"""Intervals against conformal theory; acceptance of hands and of what is none."""

import numpy as np
import pytest

from boneage_jax.errors import InputError
from boneage_jax.inference.calibration import (
    Calibration,
    _left_out_distances,
    _shrunk,
    image_statistics,
)
from tfds_rsna.hand_phantom.render import make_phantom


@pytest.fixture(scope="module")
def hands():
    return [make_phantom(index, 96, "train").image for index in range(120)]


@pytest.fixture(scope="module")
def others():
    return [make_phantom(index, 96, "test").image for index in range(60)]


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


def test_other_hands_are_accepted(calibration, others):
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


@pytest.mark.parametrize("count", [2, 29, 30, 60])
def test_few_images_do_not_judge(hands, others, count):
    """With 10 images fitted to, in-sample distances rejected 80 % of other hands."""
    found = Calibration.fit(np.zeros(2), np.zeros(2), hands[:count])
    assert found.judges_images == (count >= 30)
    away = found.distance(others) > found.max_distance
    assert away.mean() <= 0.05


def test_distances_are_those_of_images_left_out():
    seen = np.random.default_rng(0).normal(size=(40, 3)) @ np.diag([1.0, 2.0, 5.0])
    expected = []
    for row in range(len(seen)):
        others = np.delete(seen, row, 0)
        away = seen[row] - others.mean(0)
        expected.append(np.sqrt(away @ np.linalg.inv(_shrunk(np.cov(others.T))) @ away))
    np.testing.assert_allclose(_left_out_distances(seen), expected)


def test_no_age_that_cannot_be():
    image = [make_phantom(0, 64).image]
    errors = np.full(30, 10.0)
    found = Calibration.fit(errors, 0 * errors, image, training_ages=np.array([24.0, 200.0, 60.0]))
    assert (found.half_width, found.youngest, found.oldest) == (10, 24, 200)
    ages, within = found.possible(np.array([-1e6, 13.9, 14.0, 100.0, 210.0, 211.0, np.nan]))
    np.testing.assert_array_equal(ages, [14, 14, 14, 100, 210, 210, np.nan])
    assert within.tolist() == [False, False, True, True, True, False, False]
    newborn = Calibration.fit(errors, 0 * errors, image, training_ages=np.array([1.0, 228.0]))
    ages, within = newborn.possible(np.array([-2.0]))
    assert ages.tolist() == [0.0] and within.tolist() == [True]
    # Files of older versions do not know the ages of training.
    ages, within = Calibration.fit(errors, 0 * errors, image).possible(np.array([-2.0, 900.0]))
    assert ages.tolist() == [0.0, 900.0] and within.tolist() == [True, True]


@pytest.mark.parametrize(("images", "coverage"), [(2, 2 / 3), (9, 0.9), (19, 0.95), (500, 0.95)])
def test_what_an_interval_of_few_images_covers(images, coverage):
    found = Calibration.fit(np.zeros(images), np.zeros(images), [make_phantom(0, 64).image])
    assert found.coverage == pytest.approx(coverage)


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
    ages = np.array([12.0, 24.0])
    fitted = Calibration.fit(np.zeros(3), np.zeros(3), hands, training_ages=ages)
    fitted.save(path)
    loaded = Calibration.load(path)
    assert (loaded.youngest, loaded.oldest, loaded.images) == (12, 24, 3)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match=r"calibration\.npz is damaged"):
        Calibration.load(path)
    path.unlink()
    with pytest.raises(InputError, match="has not ended"):
        Calibration.load(path)


def test_intervals_widen_where_errors_grow():
    """Errors of 2 to 14 months, growing with the age: the coverage is even over the ages."""
    rng = np.random.default_rng(0)
    image = [make_phantom(0, 64).image]

    def drawn(count):
        predicted = rng.uniform(24, 216, count)
        return predicted, predicted + rng.standard_normal(count) * predicted / 16

    found = Calibration.fit(*drawn(2000), image, training_ages=np.array([24.0, 216.0]))
    predicted, true = drawn(20_000)
    low, high = found.interval(predicted)
    inside = (low <= true) & (true <= high)
    for youngest in (24, 88, 152):
        part = (predicted >= youngest) & (predicted < youngest + 64)
        assert 0.92 < inside[part].mean() < 0.98
    assert found.half_widths(np.float64(60)) < found.half_width < found.half_widths(np.float64(180))
    assert (low >= 0).all() and (low <= predicted).all() and (predicted <= high).all()
    ages, _ = found.possible(np.array([1e4]))
    assert ages == found.interval(ages)[1] == found.bounds[1]
    few = Calibration.fit(*drawn(99), image)
    assert few.half_widths(np.float64(60.0)) == few.half_widths(np.float64(180.0)) == few.half_width

"""Correction of ages, fitted on a validation split and never on the image it corrects."""

from statistics import NormalDist

import numpy as np
import pytest

from boneage_jax.inference.bias_correction import Correction, cross_fitted
from boneage_jax.inference.calibration import Calibration


def test_a_shift_takes_out_the_median_error():
    true = np.array([100.0, 110.0, 120.0, 130.0, 500.0])
    predicted = true + 4.0
    predicted[-1] = 0.0  # one gross error must not move it
    found = Correction.fit(predicted, true, "shift")
    assert (found.slope, found.intercept) == (1.0, -4.0)
    np.testing.assert_allclose(found(predicted[:4]), true[:4])


def test_a_line_undoes_a_shrinkage():
    true = np.linspace(10, 220, 50)
    found = Correction.fit(127 + 0.8 * (true - 127) + 3, true, "line")
    np.testing.assert_allclose(found.slope, 1 / 0.8)
    np.testing.assert_allclose(found(np.array([127 + 0.8 * (60 - 127) + 3])), 60.0)


def test_none_changes_nothing_and_keeps_the_dtype():
    ages = np.array([1.5, 200.25], np.float32)
    out = Correction.fit(ages, ages - 9, "none")(ages)
    assert out.dtype == np.float32 and np.array_equal(out, ages)


def test_few_predictions_are_shifted_not_lined():
    assert Correction.fit(np.array([5.0, 5.0]), np.array([7.0, 9.0]), "line").slope == 1.0
    assert Correction.fit(np.array([5.0]), np.array([7.0]), "line").intercept == 2.0


def _normal(count, bias, spread=10.0, seed=0):
    """Predictions with errors at the quantiles of a normal distribution, in random order."""
    quantiles = (np.arange(count) + 0.5) / count
    errors = np.array([NormalDist(bias, spread).inv_cdf(each) for each in quantiles])
    rng = np.random.default_rng(seed)
    true = rng.uniform(10, 220, count)
    return true + rng.permutation(errors), true


@pytest.mark.parametrize(("count", "spread"), [(100, 2.0), (100, 20.0), (400, 20.0), (2000, 10.0)])
def test_ridge_takes_out_the_posterior_mean_of_the_bias(count, spread):
    """Closed form for a normal prior of 5 months and normal errors: 25 / (25 + spread^2 / n)."""
    predicted, true = _normal(count, 6.0, spread)
    found = Correction.fit(predicted, true, "ridge")
    kept = 25 / (25 + spread**2 / count)
    assert -found(np.full(1, predicted.mean()))[0] + predicted.mean() == pytest.approx(
        6 * kept, abs=0.15
    )


def test_ridge_is_a_line_where_there_are_enough_images():
    true = np.linspace(10, 220, 2000)
    predicted = 127 + 0.8 * (true - 127) + 3
    found = Correction.fit(predicted, true, "ridge")
    np.testing.assert_allclose(found(predicted), true, atol=0.01)


def test_ridge_does_not_follow_wrong_ages():
    predicted, true = _normal(100, 3.0)
    clean = Correction.fit(predicted, true, "ridge")
    true = true.copy()
    true[:3] += 100  # years entered as months, say
    mean = (predicted - true).mean()
    found = Correction.fit(predicted, true, "ridge")
    assert mean < 0.1  # so that a mean would be misled by 3 months
    assert abs((found(predicted) - clean(predicted)).mean()) < 1


@pytest.mark.parametrize("predicted", [250 - np.linspace(50, 150, 100), np.full(100, 90.0)])
def test_ridge_does_not_turn_the_order_of_ages(predicted):
    found = Correction.fit(predicted, np.linspace(50, 150, 100), "ridge")
    assert found.slope > 0 and np.isfinite(found.intercept)


def test_ridge_corrects_nothing_with_two_images():
    assert Correction.fit(np.ones(2), np.full(2, 30.0), "ridge") == Correction()
    assert Correction.fit(np.ones(9), np.full(9, 7.0), "ridge")(np.ones(1)) == pytest.approx(7.0)


@pytest.mark.parametrize("method", ["shift", "line", "ridge"])
def test_no_image_is_corrected_by_its_own_age(method):
    rng = np.random.default_rng(0)
    true = rng.uniform(10, 220, 40)
    predicted = true + rng.normal(5, 10, 40)
    before = cross_fitted(predicted, true, method)
    for at in (0, 17, 39):
        other = true.copy()
        other[at] += 90
        assert cross_fitted(predicted, other, method)[at] == before[at]
    assert abs(np.median(before - true)) < abs(np.median(predicted - true))


def test_noise_alone_is_not_rewarded():
    """In-sample fits flatter: the cross-fitted error of pure noise is not below the plain one."""
    rng = np.random.default_rng(1)
    gains = []
    for _ in range(200):
        true = rng.uniform(10, 220, 30)
        predicted = true + rng.normal(0, 10, 30)
        fixed = cross_fitted(predicted, true, "line")
        gains.append(np.abs(predicted - true).mean() - np.abs(fixed - true).mean())
    assert np.mean(gains) < 0


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="spline"):
        Correction.fit(np.ones(3), np.ones(3), "spline")


def test_a_calibration_keeps_its_correction(tmp_path):
    rng = np.random.default_rng(0)
    true = rng.uniform(10, 220, 100)
    images = [rng.integers(0, 255, (32, 32), np.uint8) for _ in range(2)]
    plain = Calibration.fit(true + 30, true, images)
    fitted = Calibration.fit(true + 30, true, images, "shift")
    assert (plain.half_width, fitted.half_width) == (pytest.approx(30), pytest.approx(0, abs=1e-9))
    fitted.save(tmp_path / "calibration.npz")
    assert Calibration.load(tmp_path / "calibration.npz").correction == fitted.correction
    # A file written before there were corrections has none.
    with np.load(tmp_path / "calibration.npz") as stored:
        old = {key: stored[key] for key in stored if key not in ("slope", "intercept")}
    np.savez(tmp_path / "old.npz", **old)
    assert Calibration.load(tmp_path / "old.npz").correction == Correction()

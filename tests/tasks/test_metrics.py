"""Summaries against closed forms, normal theory and pair counting."""

import json
import math

import numpy as np
import pytest

from boneage_jax.tasks.metrics import age_summary, bootstrap_interval, sex_summary


def test_age_summary_in_closed_form() -> None:
    true = np.array([10.0, 23.9, 24.0, 100.0])
    predicted = true + np.array([6.0, -12.0, 12.1, -2.0])
    found = age_summary(predicted, true, np.array([1, 0, -1, 1]), train_mean=50.0)
    assert set(found) == {
        *("mae", "mae_low", "mae_high", "rmse", "bias", "within_6", "within_12"),
        *("baseline_mae", "by_sex", "by_age"),
    }
    assert found["mae"] == pytest.approx(32.1 / 4)
    assert found["rmse"] == pytest.approx(np.sqrt((36 + 144 + 12.1**2 + 4) / 4))
    assert found["bias"] == pytest.approx(4.1 / 4)
    assert (found["within_6"], found["within_12"]) == (0.5, 0.75)
    assert found["baseline_mae"] == pytest.approx((40 + 26.1 + 26 + 50) / 4)
    assert found["by_sex"]["male"] == {"n": 2, "mae": pytest.approx(4), "bias": pytest.approx(2)}
    assert found["by_sex"]["female"]["n"] == 1
    bands = [(band["low"], band["high"], band["n"]) for band in found["by_age"]]
    assert bands == [(0, 24, 2), (24, 48, 1), (96, 120, 1)]
    assert found["by_age"][0]["mae"] == pytest.approx(9)
    assert found["by_age"][0]["bias"] == pytest.approx(-3)


def test_age_summary_is_json_and_leaves_out_what_is_absent() -> None:
    found = age_summary(np.float32([5]), np.float32([7]), np.array([-1]), 100.0)
    assert found["by_sex"] == {}
    assert found["mae_low"] == found["mae"] == found["mae_high"] == 2.0
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_bootstrap_interval_is_close_to_normal_theory() -> None:
    error = np.abs(np.random.default_rng(3).normal(0, 9, 1200))
    low, high = bootstrap_interval(error)
    half = 1.96 * error.std(ddof=1) / np.sqrt(len(error))
    assert low == pytest.approx(error.mean() - half, abs=0.05)
    assert high == pytest.approx(error.mean() + half, abs=0.05)
    assert (low, high) == bootstrap_interval(error)


def test_bootstrap_interval_of_zeros_and_ones_is_binomial() -> None:
    n, ones = 60, 24
    p = ones / n
    mass = np.cumsum([math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)])
    wanted = [np.searchsorted(mass, q) / n for q in (0.025, 0.975)]
    found = bootstrap_interval(np.repeat([1.0, 0.0], [ones, n - ones]))
    assert found == pytest.approx(wanted, abs=1.01 / n)


def test_bootstrap_interval_has_fixed_draws() -> None:
    """The interval of a report is the same on every machine and in every version."""
    error = np.random.default_rng(60).exponential(5, 60)
    assert bootstrap_interval(error) == pytest.approx((3.21393639164837, 6.18025984151335))


def test_age_summary_refuses() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        age_summary(np.zeros(0), np.zeros(0), np.zeros(0), 0.0)
    with pytest.raises(ValueError, match=r"\(2,\), \(3,\)"):
        age_summary(np.zeros(2), np.zeros(3), np.zeros(3), 0.0)


def test_sex_summary_in_closed_form() -> None:
    p_male = np.array([0.9, 0.8, 0.2, 0.6, 0.1, 0.3, 0.99])
    male = np.array([1, 1, 1, 0, 0, 0, -1])
    found = sex_summary(p_male, male)
    assert found["confusion_matrix"] == [[2, 1], [1, 2]]
    for key in ("accuracy", "precision", "recall", "f1"):
        assert found[key] == pytest.approx(2 / 3)
    assert found["auc"] == pytest.approx(7 / 9)  # 0.2 loses to 0.3 and 0.6
    assert found["female"] == found["male"] == {"precision": 2 / 3, "recall": 2 / 3}
    squares = [0.01, 0.04, 0.64, 0.36, 0.01, 0.09]
    assert found["brier"] == pytest.approx(sum(squares) / 6)
    # 0.99 is of unknown sex; each of the others is alone in its tenth.
    assert [part["n"] for part in found["calibration"]] == [1] * 6
    assert [part["male"] for part in found["calibration"]] == [0, 1, 0, 0, 1, 1]
    assert [part["p_male"] for part in found["calibration"]] == sorted(p_male[:6].tolist())


def test_auc_counts_pairs_and_shares_ties() -> None:
    rng = np.random.default_rng(0)
    male = rng.integers(0, 2, 300)
    p_male = np.round(np.clip(rng.normal(0.4 + 0.2 * male, 0.2), 0, 1), 1)
    difference = p_male[male == 1][:, None] - p_male[male == 0]
    assert (difference == 0).any()
    wanted = (difference > 0).mean() + (difference == 0).mean() / 2
    assert sex_summary(p_male, male)["auc"] == pytest.approx(wanted)


def test_sex_summary_leaves_out_what_is_undefined() -> None:
    found = sex_summary(np.array([0.1, 0.2]), np.array([0, 0]))
    assert not {"auc", "precision", "recall", "f1"} & set(found)
    assert found["accuracy"] == 1.0
    assert found["male"] == {}
    json.dumps(found, allow_nan=False)
    with pytest.raises(ValueError, match="known sex"):
        sex_summary(np.array([0.5]), np.array([-1]))

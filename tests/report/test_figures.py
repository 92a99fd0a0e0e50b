"""What the figures of a report say: read from their axes, against the rows they are drawn from."""

import numpy as np
import pytest

from boneage_jax.report.figures import _age_scatter, _bland_altman, _error_by_age

ROWS = {
    "true_age": np.array([30.0, 40.0, 31.0, 100.0, 35.0]),
    "predicted_age": np.array([36.0, 36.0, 41.0, 97.0, 37.0]),
    "male": np.array([1, 1, 0, 0, 0]),
}


def test_ages_lie_about_the_identity():
    (axes,) = _age_scatter(ROWS, {}).axes
    (identity,) = [line for line in axes.lines if line.get_label() == "identity"]
    np.testing.assert_array_equal(identity.get_xdata(), identity.get_ydata())
    np.testing.assert_array_equal(identity.get_xdata(), axes.get_xlim())
    assert axes.get_xlim() == axes.get_ylim() == (0.0, 108.0)
    points = np.concatenate([group.get_offsets() for group in axes.collections])
    assert {tuple(p) for p in points} == set(
        zip(ROWS["true_age"], ROWS["predicted_age"], strict=True)
    )
    assert any("MAE 5.00 months, n = 5" in text.get_text() for text in axes.texts)


def test_differences_with_their_limits_of_agreement():
    (axes,) = _bland_altman(ROWS).axes
    difference = ROWS["predicted_age"] - ROWS["true_age"]
    bias, spread = difference.mean(), 1.96 * difference.std(ddof=1)
    heights = [line.get_ydata()[0] for line in axes.lines]
    assert heights == pytest.approx([bias + spread, bias, bias - spread])


def test_bars_of_the_sexes_stand_side_by_side_in_their_band():
    (axes,) = _error_by_age(ROWS).axes
    bars = {bar.get_x() + bar.get_width() / 2: bar for bar in axes.patches if bar.get_width()}
    band = 30.0 // 24  # 24 to 48 months: two boys, two girls
    left, right = sorted(x for x in bars if abs(x - band) < 0.5)
    assert (left + right) / 2 == pytest.approx(band)
    assert left + bars[left].get_width() / 2 < right - bars[right].get_width() / 2
    assert sorted(bars[x].get_height() for x in (left, right)) == pytest.approx([5.0, 6.0])

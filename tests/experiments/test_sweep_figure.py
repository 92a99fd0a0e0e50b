"""The figure of a sweep: where its points lie, and that they are in the file."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from boneage_jax.experiments.sweep_figure import _lines, _rows, draw_sweep


def row(arm, budget, mae, spread=1.0):
    flops = 0.98 * budget  # whole steps
    ends = {"low": mae - spread, "high": mae + spread} if spread else {}
    return {"arm": arm, "budget": budget, "train_flops": flops, "mae": mae} | ends


ONE = [row("plain", 6e12, 12.0), row("mixup", 6e12, 15.0), row("none", 6e12, 11.0, None)]
SEVERAL = [row("plain", 6e12, 12.0), row("plain", 26e12, 9.0), row("mixup", 6e12, 15.0)]


def test_one_budget_is_a_row_per_arm_from_the_worst_to_the_best():
    axes = Figure().add_subplot()
    _rows(axes, ONE, ["plain", "mixup", "none"])
    assert [text.get_text() for text in axes.get_yticklabels()] == ["mixup", "plain", "none"]
    points = {tuple(line.get_xydata()[0]) for line in axes.lines if len(line.get_xdata()) == 1}
    assert points == {(15.0, 0.0), (12.0, 1.0), (11.0, 2.0)}
    spans = [tuple(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) == 2]
    assert (14.0, 16.0) in spans and (11.0, 13.0) in spans
    assert (12.0, 12.0) in spans  # the first arm, with which the others are compared
    assert axes.get_xlabel() == "Mean absolute error (months) at 5.88 TFLOP of training"


def test_several_budgets_are_a_line_per_arm():
    axes = Figure().add_subplot()
    _lines(axes, SEVERAL, ["plain", "mixup"])
    plain = next(line for line in axes.lines if line.get_label() == "plain")
    np.testing.assert_allclose(plain.get_xydata(), [(5.88, 12.0), (25.48, 9.0)])
    assert [text.get_text() for text in axes.get_xticklabels()] == ["6", "26"]


@pytest.mark.parametrize("rows", [ONE, SEVERAL])
def test_the_file_shows_the_errors(rows, tmp_path):
    draw_sweep(tmp_path / "a.png", rows)
    draw_sweep(tmp_path / "b.png", [*rows[:-1], rows[-1] | {"mae": rows[-1]["mae"] + 0.5}])
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()

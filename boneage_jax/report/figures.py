"""Figures of a report as PNG files, drawn without pyplot and its global state."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.transforms
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.ticker import Locator, MaxNLocator, MultipleLocator

from boneage_jax.report.page import in_unit
from boneage_jax.storage.safe_write import in_one_piece
from boneage_jax.tasks.metrics import BAND

DPI = 150
# Okabe and Ito's palette, distinguishable with any colour vision; sexes also differ in marker.
_INK, _GREY, _LIGHT = "#222222", "#7A7A7A", "#DDDDDD"
_BLUE, _VERMILLION = "#0072B2", "#D55E00"
_SEXES = (("female", 0, _VERMILLION, "^"), ("male", 1, _BLUE, "o"), ("unknown", -1, _GREY, "s"))

Rows = dict[str, np.ndarray]


def draw_figures(
    folder: Path, predictions: Rows, report: dict[str, Any], title: str = ""
) -> list[Path]:
    """Draws the figures for which predictions and report hold data.

    Args:
      folder: created if missing; files of the same name are replaced.
      predictions: `true_age`, `predicted_age` in months and `male` (1, 0, -1 unknown), each [n].
      report: contents of report.json; reads `age`, `sex` and `curve`.
      title: printed small above each figure.

    Returns:
      The paths in reading order, of age_scatter.png, bland_altman.png, error_by_age.png,
      sex_confusion.png, sex_calibration.png,
      learning_curve.png.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawings: dict[str, Callable[[], Figure]] = {}
    if {"true_age", "predicted_age"} <= predictions.keys() and len(predictions["true_age"]):
        drawings["age_scatter"] = lambda: _age_scatter(predictions, report)
        drawings["bland_altman"] = lambda: _bland_altman(predictions)
        drawings["error_by_age"] = lambda: _error_by_age(predictions)
    if "sex" in report:
        drawings["sex_confusion"] = lambda: _sex_confusion(report["sex"])
        if report["sex"].get("calibration"):  # not in reports of older versions
            drawings["sex_calibration"] = lambda: _sex_calibration(report["sex"])
    if report.get("curve"):
        drawings["learning_curve"] = lambda: _learning_curve(report)
    paths = []
    for name, draw in drawings.items():
        paths.append(save_figure(draw(), folder / f"{name}.png", title))
    return paths


def save_figure(figure: Figure, path: Path, title: str = "") -> Path:
    """Writes a figure as PNG, atomically, with `title` in small print above it."""
    if title:
        figure.suptitle(title, fontsize=9, color=_GREY)
    with in_one_piece(path) as part:
        FigureCanvasAgg(figure).print_png(part, metadata={"Software": None})
    return path


def _age_scatter(rows: Rows, report: dict[str, Any]) -> Figure:
    figure, axes = _new(5.8)
    true, predicted = _ages(rows)
    low = 12 * np.floor(min(true.min(), predicted.min(), 0) / 12)
    high = 12 * np.ceil(max(true.max(), predicted.max()) / 12 + 0.2)
    axes.plot([low, high], [low, high], color=_INK, linewidth=1, label="identity")
    _scatter_by_sex(axes, rows, true, predicted)
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    axes.set(xlabel="true bone age (months)", ylabel="predicted bone age (months)")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(_ticks(high - low))
    _opaque(axes.legend(loc="lower right", **_LEGEND))
    text = f"MAE {np.abs(predicted - true).mean():.2f} months, n = {len(true)}"
    if "age" in report:
        text += f"\n95 % interval {report['age']['mae_low']:.2f} to {report['age']['mae_high']:.2f}"
    axes.text(0.03, 0.97, text, transform=axes.transAxes, va="top", fontsize=10, bbox=_BOX)
    return figure


def _ticks(months: float) -> Locator:
    """Returns ticks at whole years, or few at all for a network whose ages are far off."""
    return MultipleLocator(24) if months < 24 * 50 else MaxNLocator(6)


def _bland_altman(rows: Rows) -> Figure:
    """Draws differences over means (Bland and Altman, Lancet 1986;327:307-310)."""
    figure, axes = _new()
    true, predicted = _ages(rows)
    difference = predicted - true
    _scatter_by_sex(axes, rows, (true + predicted) / 2, difference)
    bias, spread = difference.mean(), 1.96 * difference.std(ddof=min(1, len(difference) - 1))
    beside = matplotlib.transforms.blended_transform_factory(axes.transAxes, axes.transData)
    reach = max(float(np.abs(difference).max()), abs(bias) + spread, 1.0) * 1.15
    apart = 0.075 * 2 * reach  # distance between labels in months
    for value, name, style, offset in (
        (bias + spread, "+1.96 SD", "--", apart),
        (bias, "bias", "-", 0.0),
        (bias - spread, "−1.96 SD", "--", -apart),
    ):
        axes.axhline(value, color=_INK, linewidth=1, linestyle=style)
        height = value if spread > apart else bias + offset
        label = f"{name}\n{value:+.1f}".replace("-", "−")
        axes.text(1.015, height, label, transform=beside, va="center", fontsize=9)
    axes.set_ylim(-reach, reach)
    axes.set(xlabel="mean of true and predicted bone age (months)")
    axes.set(ylabel="predicted − true (months)")
    axes.xaxis.set_major_locator(_ticks(np.ptp((true + predicted) / 2)))
    _legend_above(axes)
    return figure


def _error_by_age(rows: Rows) -> Figure:
    figure, axes = _new()
    true, predicted = _ages(rows)
    male = rows.get("male", np.full(len(true), -1))
    error = np.abs(predicted - true)
    bands = np.floor(true / BAND).astype(int)
    present = [sex for sex in _SEXES if (male == sex[1]).any()]
    width = 0.8 / len(present)
    for place, (name, value, colour, _) in enumerate(present):
        shift = (place - (len(present) - 1) / 2) * width
        for band in np.unique(bands[male == value]):
            values = error[(bands == band) & (male == value)]
            x = band + shift
            axes.bar(x, values.mean(), width * 0.92, color=colour, alpha=0.85, zorder=2)
            if len(values) >= 5:  # fewer give no useful interval
                half = 1.96 * values.std(ddof=1) / np.sqrt(len(values))
                axes.errorbar(x, values.mean(), half, color=_INK, linewidth=1, capsize=2, zorder=3)
        label = f"{name} (n = {(male == value).sum()})"
        axes.bar(0, 0, 0, color=colour, alpha=0.85, label=label)
    axes.axhline(error.mean(), color=_INK, linewidth=1, linestyle="--", label="all images")
    ticks = np.arange(bands.min(), bands.max() + 1)
    names = [f"{b * BAND}–{(b + 1) * BAND}\nn = {(bands == b).sum()}" for b in ticks]
    axes.set_xticks(ticks, names, fontsize=7.5)
    axes.set_ylim(bottom=0)
    axes.set(xlabel="true bone age (months)", ylabel="mean absolute error (months)")
    axes.grid(visible=False, axis="x")
    _legend_above(axes)
    return figure


def _sex_confusion(sex: dict[str, Any]) -> Figure:
    figure, axes = _new()
    counts = np.array(sex["confusion_matrix"])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        share = shares[row, column]
        colour = "white" if share > 0.55 else _INK
        text = f"{count}\n{share:.1%}"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=13)
    axes.set_xticks([0, 1], ["female", "male"])
    axes.set_yticks([0, 1], ["female", "male"])
    axes.set(xlabel="predicted sex", ylabel="true sex")
    axes.grid(visible=False)
    axes.tick_params(length=0)
    auc = f", AUC {sex['auc']:.3f}" if "auc" in sex else ""
    axes.set_title(f"accuracy {sex['accuracy']:.3f}{auc}", fontsize=10)
    return figure


def _sex_calibration(sex: dict[str, Any]) -> Figure:
    """Draws how often a probability comes true (a reliability diagram, Murphy and Winkler 1977)."""
    figure, axes = _new()
    said = np.array([part["p_male"] for part in sex["calibration"]])
    seen = np.array([part["male"] for part in sex["calibration"]])
    counts = np.array([part["n"] for part in sex["calibration"]])
    axes.plot([0, 1], [0, 1], color=_INK, linewidth=1, label="perfect")
    # Wilson's interval; that of a normal distribution has no width where all are male.
    spread = 1.96 / np.sqrt(counts)
    middle = (seen + spread**2 / 2) / (1 + spread**2)
    half = spread * np.sqrt(seen * (1 - seen) + spread**2 / 4) / (1 + spread**2)
    whiskers = np.maximum([seen - (middle - half), middle + half - seen], 0)
    label = f"network, n = {counts.sum()}, 95 %"
    axes.errorbar(
        said,
        seen,
        whiskers,
        fmt="o",
        color=_BLUE,
        markersize=5,
        linewidth=1,
        capsize=2,
        label=label,
    )
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.set(xlabel="predicted probability of male", ylabel="fraction of males")
    axes.set_title(f"Brier score {sex['brier']:.3f} (0.25 for 0.5 always)", fontsize=10)
    axes.legend(loc="upper left", **_LEGEND)
    return figure


def _learning_curve(report: dict[str, Any]) -> Figure:
    figure, axes = _new()
    curve = report["curve"]
    metric = next(name for name in curve[0] if name not in ("step", "flops"))
    flops = np.array([point["flops"] for point in curve], float)
    values = np.array([point[metric] for point in curve], float)
    factor, unit = in_unit(flops.max())
    months = metric == "mae"
    axes.plot(flops / factor, values, "o-", color=_BLUE, markersize=4, linewidth=1.5)
    best = int(values.argmin())  # the metric of a task is an error
    axes.plot(flops[best] / factor, values[best], "o", color=_VERMILLION, markersize=8)
    axes.plot([], [], "o", color=_VERMILLION, markersize=8, label=f"best: {values[best]:.4g}")
    baseline = report.get("age", {}).get("baseline_mae")
    if months and baseline:
        label = f"predicting the training mean: {baseline:.1f}"
        axes.axhline(baseline, color=_GREY, linewidth=1, linestyle="--", label=label)
    axes.set(xlabel=f"training compute ({unit})")
    axes.set(ylabel="validation MAE (months)" if months else f"validation {metric}")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.legend(loc="best", **_LEGEND)
    return figure


_LEGEND: dict[str, Any] = {"frameon": True, "framealpha": 0.9, "edgecolor": _LIGHT, "fontsize": 9}
_BOX = {"facecolor": "white", "edgecolor": _LIGHT, "alpha": 0.9, "boxstyle": "round,pad=0.4"}


def _new(height: float = 4.6) -> tuple[Figure, Axes]:
    """Returns an empty figure, 6.4 inches wide, in the common style."""
    figure = Figure(figsize=(6.4, height), dpi=DPI, layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    axes.grid(color=_LIGHT, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_GREY)
    axes.tick_params(color=_GREY, labelcolor=_INK, labelsize=9)
    axes.xaxis.label.set_fontsize(10)
    axes.yaxis.label.set_fontsize(10)
    return figure, axes


def _legend_above(axes: Axes) -> None:
    """Adds a one-line legend above the frame, where it cannot cover points."""
    place: dict[str, Any] = {
        "loc": "lower left",
        "bbox_to_anchor": (0.0, 1.0),
        "borderaxespad": 0.2,
    }
    _opaque(axes.legend(ncols=4, frameon=False, fontsize=9, handletextpad=0.4, **place))


def _opaque(legend: Legend) -> None:
    """Draws the markers of a legend opaque and in one size."""
    for handle in legend.legend_handles:
        if isinstance(handle, PathCollection):
            handle.set_alpha(1.0)
            handle.set_sizes([30.0])


def _ages(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(rows["true_age"], float), np.asarray(rows["predicted_age"], float)


def _scatter_by_sex(axes: Axes, rows: Rows, x: np.ndarray, y: np.ndarray) -> None:
    male = rows.get("male", np.full(len(x), -1))
    crowd = np.sqrt(min(max(len(x) / 200, 1.0), 16.0))  # many points are drawn smaller and paler
    for name, value, colour, marker in _SEXES:
        if (male == value).any():
            here = male == value
            label = f"{name} ({here.sum()})"
            axes.scatter(
                x[here],
                y[here],
                s=28 / crowd,
                marker=marker,
                color=colour,
                alpha=max(0.8 / np.sqrt(crowd), 0.4),
                linewidths=0,
                label=label,
            )

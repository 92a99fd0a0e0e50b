"""Figure of a benchmark: the position of each step under the roofline of the machine."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from boneage_jax.benchmarking.peaks import Peaks
from boneage_jax.report.figures import DPI, save_figure
from boneage_jax.report.page import in_unit

_INK, _GREY, _LIGHT = "#222222", "#7A7A7A", "#DDDDDD"
# Okabe and Ito's palette; each case also has its own marker, for printing in grey.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#222222")
_MARKERS = "os^Dv<>PX*"


def draw_roofline(
    path: Path, benchmark: Mapping[str, Any], report: Mapping[str, Any] | None = None
) -> Path:
    """Draws FLOP/s over FLOPs per byte, both logarithmic, under the measured peaks.

    Args:
      path: where to write the PNG.
      benchmark: contents of benchmark.json.
      report: contents of the report.json of a bone-age training; adds a panel with its error over
        training compute.
    """
    figure = Figure(
        figsize=(6.8 if report is None else 12.0, 4.8),
        dpi=DPI,
        layout="constrained",
        facecolor="white",
    )
    panels = figure.subplots(1, 1 if report is None else 2, squeeze=False)[0]
    for axes in panels:
        axes.grid(color=_LIGHT, linewidth=0.7, which="major")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(_GREY)
        axes.tick_params(color=_GREY, labelcolor=_INK, labelsize=9, which="both")
    _roofline(panels[0], benchmark)
    if report is not None:
        _error(panels[1], report)
    hardware = benchmark["hardware"]
    return save_figure(figure, path, f"{hardware['device']}, {benchmark['date'][:10]}")


def _roofline(axes: Axes, benchmark: Mapping[str, Any]) -> None:
    measured = benchmark["peaks"]
    peaks = Peaks(measured["flops_per_second"], measured["bytes_per_second"], measured["dtype"])
    ridge = peaks.flops_per_second / peaks.bytes_per_second
    rows = [row for row in benchmark["results"] if "intensity" in row]
    reach = [row["intensity"] for row in rows] + [ridge]
    x = np.geomspace(min(reach) / 4, max(reach) * 6, 200)
    axes.loglog(x, [peaks.roof(at) / 1e9 for at in x], color=_INK, linewidth=1.5)
    top = peaks.flops_per_second / 1e9
    axes.plot([ridge, ridge], [peaks.roof(x[0]) / 1e9, top], ":", color=_GREY, linewidth=0.8)
    axes.annotate(
        f"{peaks.flops_per_second / 1e9:,.4g} GFLOP/s, {peaks.dtype} matrix product",
        (x[-1], peaks.flops_per_second / 1e9),
        xytext=(0, 4),
        textcoords="offset points",
        ha="right",
        fontsize=8.5,
        color=_INK,
    )
    low = x[int(0.04 * len(x))]
    axes.annotate(
        f"{peaks.bytes_per_second / 1e9:.3g} GB/s",
        (low, peaks.roof(low) / 1e9),
        xytext=(10, -10),
        textcoords="offset points",
        fontsize=8.5,
        color=_INK,
    )
    for number, row in enumerate(rows):
        # Points of several devices are drawn at the rate per device, like the roof.
        devices = 1 if benchmark["hardware"]["platform"] == "cpu" else row["devices"]
        axes.plot(
            row["intensity"],
            row["flops_per_second"] / 1e9 / devices,
            _MARKERS[number % len(_MARKERS)],
            color=_COLOURS[number % len(_COLOURS)],
            markersize=7,
            label=_label(row),
        )
    axes.set_xlabel("FLOPs per byte accessed (counted FLOPs, bytes by XLA's count)")
    axes.set_ylabel("GFLOP/s of a device")
    if rows:
        # The legend goes above the roof, where there are no points.
        axes.set_ylim(top=top * 10 ** (0.8 + 0.17 * len(rows)))
        axes.legend(loc="upper left", fontsize=8, framealpha=0.9, edgecolor=_LIGHT)


def _label(row: Mapping[str, Any]) -> str:
    name = f"parallel, {row['name']}" if row["case"] == "parallel" else row["case"]
    what = f"{name}, {row['image_size']} px, batch {row['batch_size']}"
    return f"{what}: {row['peak_share']:.1%} of peak"


def _error(axes: Axes, report: Mapping[str, Any]) -> None:
    total = report["compute"]["train_flops"]
    factor, unit = in_unit(total)
    curve = [point for point in report["curve"] if point["flops"] > 0]
    flops = [point["flops"] / factor for point in curve]
    axes.plot(flops, [p["mae"] for p in curve], "o-", color=_COLOURS[0], markersize=4)
    axes.plot(
        total / factor,
        report["age"]["mae"],
        "o",
        color=_COLOURS[1],
        markersize=8,
        label=f"reported: {report['age']['mae']:.2f} months after {total / factor:.3g} {unit}",
    )
    baseline = report["age"].get("baseline_mae")
    if baseline:
        axes.axhline(
            baseline,
            color=_GREY,
            linewidth=1,
            linestyle="--",
            label=f"predicting the training mean: {baseline:.1f}",
        )
    if len(flops) > 1 and max(flops) > 3 * min(flops):
        axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"training compute ({unit})")
    axes.set_ylabel("validation MAE (months)")
    axes.legend(loc="best", fontsize=8.5, framealpha=0.9, edgecolor=_LIGHT)

"""Figure of a sweep: error against training FLOPs, with intervals over seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from boneage_jax.report.figures import DPI, save_figure

# Okabe and Ito's palette; each arm also has its own marker, for printing in grey.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#222222")
_MARKERS = "os^Dv<>PX*"


def draw_sweep(path: Path, summary: Sequence[Mapping[str, Any]]) -> None:
    """Draws `mae_vs_flops.png`: one line per arm over budgets, or one row per arm at one budget.

    Args:
      path: the PNG file to write.
      summary: rows from `boneage_jax.experiments.sweep_tables.summarize`, at least one.
    """
    budgets = {row["budget"] for row in summary}
    arms = list(dict.fromkeys(row["arm"] for row in summary))
    height = 4.5 if len(budgets) > 1 else 1.3 + 0.36 * len(arms)
    figure = Figure(figsize=(8.0, height), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    if len(budgets) > 1:
        _lines(axes, summary, arms)
    else:
        _rows(axes, summary, arms)
    axes.grid(color="#DDDDDD", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


def _lines(axes: Axes, summary: Sequence[Mapping[str, Any]], arms: Sequence[str]) -> None:
    for number, arm in enumerate(arms):
        rows = sorted((r for r in summary if r["arm"] == arm), key=lambda r: r["train_flops"])
        colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
        x, y = [r["train_flops"] / 1e12 for r in rows], [r["mae"] for r in rows]
        axes.plot(x, y, color=colour, marker=marker, markersize=6, linewidth=1.5, label=arm)
        for at, row in zip(x, rows, strict=True):
            if "low" in row:
                axes.plot([at, at], [row["low"], row["high"]], color=colour, linewidth=1)
    axes.set_xscale("log")
    # Budgets are few and round: they serve as ticks.
    budgets = sorted({row["budget"] / 1e12 for row in summary})
    axes.set_xticks(budgets, [f"{budget:.3g}" for budget in budgets])
    axes.minorticks_off()
    axes.margins(x=0.1)
    axes.set_xlabel("Training compute (TFLOP)")
    axes.set_ylabel("Mean absolute error (months)")
    if len(arms) > 1:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)


def _rows(axes: Axes, summary: Sequence[Mapping[str, Any]], arms: Sequence[str]) -> None:
    ordered = sorted(summary, key=lambda r: -r["mae"])
    for place, row in enumerate(ordered):
        number = arms.index(row["arm"])
        colour = _COLOURS[0] if number == 0 else "#555555"
        if "low" in row:
            axes.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=1.5)
        axes.plot(row["mae"], place, "s" if number == 0 else "o", color=colour, markersize=6)
    axes.set_yticks(range(len(ordered)), [row["arm"] for row in ordered])
    axes.axvline(
        next(r["mae"] for r in ordered if r["arm"] == arms[0]), color=_COLOURS[0], linewidth=0.8
    )
    flops = max(row["train_flops"] for row in summary) / 1e12
    axes.set_xlabel(f"Mean absolute error (months) at {flops:.3g} TFLOP of training")

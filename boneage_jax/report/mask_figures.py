"""Figures of hand masks: overlays on the radiographs, and the distribution of Dice over images."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from boneage_jax.data.source import Split
from boneage_jax.report.figures import DPI, save_figure

_TRUE, _FOUND = "#56B4E9", "#D55E00"  # Okabe and Ito
_SHOWN = 3  # images each: worst, median and best

Rows = dict[str, np.ndarray]


def draw_mask_figures(folder: Path, rows: Rows, split: Split, title: str = "") -> list[Path]:
    """Draws masks.png (worst, median and best images) and dice.png.

    Args:
      folder: created if missing; files of the same name are replaced.
      rows: `true_positive`, `false_positive`, `false_negative` [n], pixels at the stored size, and
        `p_hand` uint8 [n, S, S].
      split: its records hold `image` and `mask`, in the order of the rows.
      title: printed small above each figure.

    Returns:
      The paths, in reading order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    hit = rows["true_positive"].astype(np.float64)
    wrong = rows["false_positive"].astype(np.float64) + rows["false_negative"]
    dice = np.where(hit + wrong > 0, 2 * hit / np.maximum(2 * hit + wrong, 1), 1.0)
    return [
        save_figure(_overlays(dice, rows["p_hand"], split), folder / "masks.png", title),
        save_figure(_spread(dice), folder / "dice.png", title),
    ]


def _overlays(dice: np.ndarray, p_hand: np.ndarray, split: Split) -> Figure:
    order = np.argsort(dice, kind="stable")
    shown = min(_SHOWN, len(dice))
    middle = max((len(dice) - shown) // 2, 0)
    rows = (
        ("worst", order[:shown]),
        ("median", order[middle : middle + shown]),
        ("best", order[::-1][:shown]),
    )
    figure = Figure(figsize=(8.2, 8.9), dpi=DPI, layout="constrained")
    grid = figure.subplots(len(rows), shown, squeeze=False)
    for line, (name, positions) in zip(grid, rows, strict=True):
        for axes, position in zip(line, positions, strict=True):
            record = split.source[int(split.rows[position])]
            _overlay(axes, record["image"][..., 0], record["mask"][..., 0], p_hand[position])
            axes.set_title(
                f"{name}: {split.labels['id'][position]}, Dice {dice[position]:.4f}", fontsize=8
            )
    figure.supxlabel("outlines: blue the label, orange the prediction", fontsize=9)
    return figure


def _overlay(axes: Axes, image: np.ndarray, mask: np.ndarray, p_hand: np.ndarray) -> None:
    axes.imshow(image, cmap="gray", vmin=0, vmax=255)
    for values, level, colour in ((mask, 0.5, _TRUE), (p_hand, 127.5, _FOUND)):
        if values.min() < level < values.max():
            axes.contour(values, levels=[level], colors=colour, linewidths=1)
    axes.set_axis_off()


def _spread(dice: np.ndarray) -> Figure:
    figure = Figure(figsize=(6.4, 4.2), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.plot(np.sort(dice), (np.arange(len(dice)) + 0.5) / len(dice), "o-", color=_FOUND, ms=3)
    axes.axvline(dice.mean(), color="#222222", linewidth=1, linestyle="--")
    axes.set(xlabel="Dice of an image", ylabel="share of images at or below", ylim=(0, 1))
    axes.set_title(
        f"mean {dice.mean():.4f} (dashed), median {np.median(dice):.4f}, "
        f"worst {dice.min():.4f}, n = {len(dice)}",
        fontsize=10,
    )
    axes.grid(color="#DDDDDD", linewidth=0.6)
    return figure

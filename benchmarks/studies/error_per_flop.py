"""Error against FLOPs of training: every run, the best of each budget, and a law fitted to them.

usage: python -m benchmarks.studies.error_per_flop --output=law.json --figure=FILE.png RUNS.csv...

RUNS.csv are tables of `run_log` on the same validation images. The law is
months = floor + factor * (FLOPs / 1e13) ** -exponent, least squares over the runs that none of as
many FLOPs or fewer beats, of seed 0 alone: the best of several seeds would have cost all of them.
Its uncertainty: the fit is repeated on errors drawn within the interval of each run. Results on
other images stand in a panel of their own.
"""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.optimize import curve_fit

from benchmarks.provenance import write_provenance
from boneage_jax.report.figures import DPI, save_figure

_UNIT = 1e13
_DRAWS = 1000
_SAME = 1.02  # FLOPs that differ by less are the same budget: runs end with a whole step
_NORMAL = 1.96  # standard deviations from the middle of a 95 % interval to its end
_ASKED = (1e16, 1e17)
# Runs that are named in the figure, and where (points from the run).
NAMED = {
    "b4_1p": ("EfficientNet-B4, random weights", (0, 64)),
    "b4_lite0_200t_atlas": ("EfficientNet-B4, grown from Lite0", (16, 62)),
}
# Name, FLOPs of training, months, which images, where the label stands (points). FLOPs of the first
# two are from their networks, image sizes and epochs.
PUBLISHED = (
    ("16Bit 2017", 5e17, 4.27, "official test", (0, 9)),
    ("josw777 512 px", 4e16, 4.25, "official test", (0, -29)),
    ("B4 + U-Net", 8.7e14, 11.3, "own split", (12, 9)),
    # benchmarks/results/rsna_curve/earlier_split
    ("this project", 8.55e13, 7.70, "that split", (0, 9)),
)


class Point(NamedTuple):
    """One run: FLOPs of training, mean absolute error in months with its 95 % interval, seed."""

    name: str
    flops: float
    months: float
    low: float
    high: float
    seed: str = "0"


class Law(NamedTuple):
    """months = floor + factor * (FLOPs / 1e13) ** -exponent."""

    floor: float
    factor: float
    exponent: float

    def __call__(self, flops: np.ndarray | float) -> np.ndarray | float:
        return self.floor + self.factor * (np.asarray(flops) / _UNIT) ** -self.exponent


def read_points(path: Path) -> list[Point]:
    """Returns the runs of a table; one without an interval gets that of 1,354 images, ±0.4."""
    points = []
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if not row["mae"]:
                continue
            months, flops = float(row["mae"]), float(row["train_flops"])
            ends = [
                float(row[key]) if row[key] else months + other
                for key, other in (("mae_low", -0.4), ("mae_high", 0.4))
            ]
            points.append(Point(row["arm"], flops, months, *ends, row["seed"] or "0"))
    return points


def best_of(points: Sequence[Point]) -> list[Point]:
    """Returns the runs of seed 0 that none of about as many FLOPs or fewer beats, by FLOPs."""
    points = [point for point in points if point.seed == "0"]
    found = [
        point
        for point in points
        if not any(
            other.months < point.months and other.flops <= _SAME * point.flops for other in points
        )
    ]
    return sorted(found, key=lambda one: one.flops)


def fit(flops: np.ndarray, months: np.ndarray) -> Law:
    """Fits the law; a floor below 0 or above the best run is not considered."""
    found, _ = curve_fit(
        lambda x, *law: Law(*law)(x),
        *(flops, months),
        p0=(months.min() * 0.7, months.max() - months.min() * 0.7, 0.2),
        bounds=([0.0, 0.0, 0.01], [months.min(), 50.0, 1.0]),
        maxfev=20_000,
    )
    return Law(*found)


def draw_laws(best: Sequence[Point], draws: int = _DRAWS, seed: int = 0) -> list[Law]:
    """Fits the law to errors drawn within the intervals."""
    rng = np.random.default_rng(seed)
    flops = np.array([point.flops for point in best])
    months = np.array([point.months for point in best])
    spread = np.array([(point.high - point.low) / 2 / _NORMAL for point in best])
    laws = []
    for _ in range(draws):
        try:
            laws.append(fit(flops, rng.normal(months, spread)))
        except RuntimeError:  # no optimum: errors that grow with FLOPs
            continue
    return laws


def draw(
    path: Path, points: Sequence[Point], best: Sequence[Point], law: Law, laws: Sequence[Law]
) -> None:
    """Draws the runs with the law and its uncertainty, and beside them what others published."""
    figure = Figure(figsize=(9.5, 4.2), dpi=DPI, layout="constrained")
    own, others = figure.subplots(1, 2, width_ratios=(3, 2))
    x = np.geomspace(8e12, 1.2e15, 100)
    curves = np.array([law(x) for law in laws])
    own.fill_between(x, *np.quantile(curves, (0.025, 0.975), axis=0), color="#0072B2", alpha=0.15)
    own.plot(x, law(x), color="#0072B2", linewidth=1)
    rest = [point for point in points if point not in best]
    own.plot(
        *([getattr(p, key) for p in rest] for key in ("flops", "months")),
        *("o",),
        color="#999999",
        markersize=4,
        label="other runs",
    )
    for point in rest:
        if point.name in NAMED:
            text, offset = NAMED[point.name]
            own.annotate(
                text,
                (point.flops, point.months),
                xytext=offset,
                textcoords="offset points",
                fontsize=8,
                ha="right",
                arrowprops={
                    "arrowstyle": "-",
                    "color": "#999999",
                    "linewidth": 0.7,
                    "relpos": (1, 0),  # of the text, where the line begins
                },
            )
    for point in best:
        own.plot([point.flops] * 2, [point.low, point.high], color="#0072B2", linewidth=1.2)
    own.plot(
        *([getattr(p, key) for p in best] for key in ("flops", "months")),
        *("s",),
        color="#0072B2",
        markersize=6,
        label="best for its FLOPs",
    )
    own.set_title("boneage_jax, 1,354 validation radiographs", fontsize=10)
    own.set_ylabel("Mean absolute error (months)")
    own.legend(frameon=False, fontsize=9)
    for name, flops, months, where, offset in PUBLISHED:
        others.plot(flops, months, "D", color="#D55E00", markersize=6)
        others.annotate(
            f"{name}\n{where}",
            (flops, months),
            xytext=offset,
            textcoords="offset points",
            fontsize=8,
            ha="center",
        )
    others.set_title("on other images", fontsize=10)
    others.set_xlim(1e13, 1e19)
    others.set_ylim(2.5, 13)
    for axes in (own, others):
        _finish(axes)
    save_figure(figure, path)


def _finish(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.set_xlabel("FLOPs of training")
    axes.grid(color="#DDDDDD", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """Fits, draws, and prints the law with what it says of more FLOPs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--figure", required=True, type=Path)
    parser.add_argument("tables", nargs="+", type=Path, metavar="RUNS.csv")
    args = parser.parse_args()
    points = [point for table in args.tables for point in read_points(table)]
    best = best_of(points)
    law = fit(*(np.array([getattr(p, key) for p in best]) for key in ("flops", "months")))
    laws = draw_laws(best)
    spread = {
        name: [float(v) for v in np.quantile([getattr(one, name) for one in laws], (0.025, 0.975))]
        for name in Law._fields
    }
    expected = {
        f"{flops:g}": {
            "months": float(law(flops)),
            "interval": [float(v) for v in np.quantile([o(flops) for o in laws], (0.025, 0.975))],
        }
        for flops in _ASKED
    }
    draw(args.figure, points, best, law, laws)
    write_provenance(
        args.output,
        {"tables": [str(table) for table in args.tables]},
        runs=len(points),
        best=[point._asdict() for point in best],
        law=law._asdict(),
        law_intervals=spread,
        expected=expected,
        fits=len(laws),
    )
    for point in best:
        print(f"{point.flops:.3g} FLOPs: {point.months:.2f} months ({point.name})")
    print(f"months = {law.floor:.2f} + {law.factor:.2f} * (FLOPs / 1e13) ** -{law.exponent:.3f}")
    for flops, one in expected.items():
        low, high = one["interval"]  # type: ignore[misc]
        print(f"{flops} FLOPs: {one['months']:.2f} months ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()

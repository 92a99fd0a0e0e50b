"""Coverage of 95 % intervals by sex and age, fitted on one half of a validation split at a time.

usage: python -m benchmarks.robustness.coverage --output=FILE.csv [--split=locked]
           PREDICTIONS.csv...

PREDICTIONS.csv is of a training (id, true_age, predicted_age, male). Random halves, both ways: the
part of the other half whose true age lies in its interval, with the width that `Calibration.fit`
finds for each age, and with one width for all. With --split also a row of each, fitted to the whole
validation split and measured once on evaluation/SPLIT/predictions.csv beside PREDICTIONS.csv.
"""

import argparse
import csv
import dataclasses
import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.provenance import write_rows
from boneage_jax.inference.calibration import Calibration

_COLUMNS = ("predicted_age", "true_age", "male")
_SPLITS = 40
_BANDS = (0, 60, 108, 156, 240)  # months


class Ages(NamedTuple):
    """Predicted and true ages in months, and sexes, 1 male: [n] each."""

    predicted: np.ndarray
    true: np.ndarray
    male: np.ndarray

    def take(self, rows: np.ndarray) -> "Ages":
        """Returns some of them."""
        return Ages(*(values[rows] for values in self))


def read_ages(path: Path) -> Ages:
    """Reads predictions.csv of a training or evaluation."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    return Ages(*(np.array([float(row[name]) for row in rows]) for name in _COLUMNS))


def covered(fitted: Ages, other: Ages) -> dict[str, dict[str, float]]:
    """Returns the parts of `other` within the intervals fitted to `fitted`, by kind of width."""
    groups = {"all": other.true >= 0, "male": other.male == 1, "female": other.male == 0}
    for low, high in itertools.pairwise(_BANDS):
        groups[f"{low} to {high}"] = (other.true >= low) & (other.true < high)
    by_age = Calibration.fit(fitted.predicted, fitted.true, [np.zeros((8, 8), np.uint8)] * 2)
    errors = np.abs(fitted.predicted - fitted.true)
    rank = int(np.ceil(0.95 * (len(errors) + 1))) - 1
    for_all = dataclasses.replace(by_age, tilt=0.0, half_width=float(np.sort(errors)[rank]))
    found = {}
    for name, calibration in (("one for all", for_all), ("by age", by_age)):
        width = calibration.half_widths(other.predicted)
        inside = np.abs(other.predicted - other.true) <= width
        found[name] = {group: float(inside[members].mean()) for group, members in groups.items()}
        found[name]["half_width"] = float(width.mean())
    return found


def coverages(ages: Ages) -> list[dict[str, object]]:
    """Returns a row per kind of width, means over random halves."""
    rng = np.random.default_rng(0)
    parts = []
    for _ in range(_SPLITS):
        order = rng.permutation(len(ages.true))
        halves = order[: len(order) // 2], order[len(order) // 2 :]
        for fitted, other in (halves, halves[::-1]):
            parts.append(covered(ages.take(fitted), ages.take(other)))
    return [
        {
            "width": name,
            **{key: f"{np.mean([part[name][key] for part in parts]):.3f}" for key in first},
        }
        for name, first in parts[0].items()
    ]


def main() -> None:
    """Writes two rows per file and split."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--split", default="", help="measure on this one as well")
    parser.add_argument("predictions", nargs="+", type=Path)
    args = parser.parse_args()
    table: list[dict[str, object]] = []
    for path in args.predictions:
        ages = read_ages(path)
        start = {"run": path.parent.name, "measured": "halves", "n": len(ages.true)}
        table += [start | row for row in coverages(ages)]
        if args.split:
            other = read_ages(path.parent / "evaluation" / args.split / path.name)
            start |= {"measured": args.split, "n": len(other.true)}
            for name, parts in covered(ages, other).items():
                table.append(
                    start | {"width": name} | {key: f"{part:.3f}" for key, part in parts.items()}
                )
    for row in table:
        print(*row.values())
    write_rows(args.output, table, vars(args))


if __name__ == "__main__":
    main()

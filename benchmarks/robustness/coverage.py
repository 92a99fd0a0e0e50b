"""Coverage of 95 % intervals by sex and age, fitted on one half of a validation split at a time.

usage: python -m benchmarks.robustness.coverage --output=FILE.csv PREDICTIONS.csv...

PREDICTIONS.csv is of a training (id, true_age, predicted_age, male). Random halves, both ways: the
part of the other half whose true age lies in its interval, with the width that `Calibration.fit`
finds for each age, and with one width for all.
"""

import argparse
import csv
import dataclasses
import itertools
from pathlib import Path

import numpy as np

from benchmarks.provenance import write_provenance
from boneage_jax.inference.calibration import Calibration

_COLUMNS = ("predicted_age", "true_age", "male")
_SPLITS = 40
_BANDS = (0, 60, 108, 156, 240)  # months


def coverages(predicted: np.ndarray, true: np.ndarray, male: np.ndarray) -> list[dict[str, object]]:
    """Returns a row per kind of width."""
    groups = {"all": true >= 0, "male": male == 1, "female": male == 0}
    for low, high in itertools.pairwise(_BANDS):
        groups[f"{low} to {high}"] = (true >= low) & (true < high)
    blank = [np.zeros((8, 8), np.uint8)] * 2
    rng = np.random.default_rng(0)
    found: dict[str, dict[str, list[float]]] = {}
    for _ in range(_SPLITS):
        order = rng.permutation(len(true))
        halves = order[: len(order) // 2], order[len(order) // 2 :]
        for fitted, other in (halves, halves[::-1]):
            by_age = Calibration.fit(predicted[fitted], true[fitted], blank)
            errors = np.abs(predicted[fitted] - true[fitted])
            rank = int(np.ceil(0.95 * (len(fitted) + 1))) - 1
            for_all = dataclasses.replace(by_age, tilt=0.0, half_width=float(np.sort(errors)[rank]))
            for name, calibration in (("one for all", for_all), ("by age", by_age)):
                width = calibration.half_widths(predicted[other])
                inside = np.abs(predicted[other] - true[other]) <= width
                parts = found.setdefault(name, {})
                for group, members in groups.items():
                    parts.setdefault(group, []).append(inside[members[other]].mean())
                parts.setdefault("half_width", []).append(float(width.mean()))
    return [
        {"width": name} | {group: f"{np.mean(values):.3f}" for group, values in parts.items()}
        for name, parts in found.items()
    ]


def main() -> None:
    """Writes two rows per file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("predictions", nargs="+", type=Path)
    args = parser.parse_args()
    table = []
    for path in args.predictions:
        with path.open() as file:
            rows = list(csv.DictReader(file))
        columns = [np.array([float(row[name]) for row in rows]) for name in _COLUMNS]
        for row in coverages(*columns):
            table.append({"run": path.parent.name, "n": len(rows)} | row)
            print(*table[-1].values())
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with args.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, table[0].keys())
        writer.writeheader()
        writer.writerows(table)
    write_provenance(args.output, vars(args))


if __name__ == "__main__":
    main()

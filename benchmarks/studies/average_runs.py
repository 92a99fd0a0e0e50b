"""The error of several networks whose ages are averaged, and of each alone, on the same images.

usage: python -m benchmarks.studies.average_runs --output=FILE.json WORKDIR WORKDIR...

Reads the validation predictions of finished trainings. Errors with 95 % intervals (bootstrap over
images), the mean correlation of the signed errors of two networks, and the FLOPs of all trainings.
"""

import argparse
from pathlib import Path

import numpy as np

from benchmarks.provenance import write_provenance
from boneage_jax.experiments.bootstrap import read_predictions
from boneage_jax.experiments.sweep_tables import read_point
from boneage_jax.tasks.metrics import bootstrap_interval


def summary(predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Returns the mean absolute error of ages [n] in months, with its 95 % interval."""
    error = np.abs(predicted - true)
    low, high = bootstrap_interval(error)
    return {"mae": float(error.mean()), "mae_low": low, "mae_high": high}


def main() -> None:
    """Writes FILE.json and prints one line per network and one for the average."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("workdirs", nargs="+", type=Path, metavar="WORKDIR")
    args = parser.parse_args()
    found = read_predictions(args.workdirs)
    points = [read_point(folder) for folder in args.workdirs]
    flops = sum(point["train_flops"] + point["mask_flops"] for point in points)
    names = [folder.name for folder in args.workdirs]
    lines = {
        name: summary(ages, found.true) for name, ages in zip(names, found.predicted, strict=True)
    }
    lines["average"] = summary(found.predicted.mean(0), found.true)
    pairs = np.corrcoef(found.predicted - found.true)[np.triu_indices(len(names), 1)]
    for name, line in lines.items():
        print(f"{name:<20}{line['mae']:6.2f} ({line['mae_low']:.2f} - {line['mae_high']:.2f})")
    print(f"months on {len(found.true)} images, {flops:.4g} FLOPs, correlation {pairs.mean():.3f}")
    write_provenance(
        args.output,
        {"workdirs": names},
        images=len(found.true),
        train_flops=flops,
        months=lines,
        correlation=float(pairs.mean()),
    )


if __name__ == "__main__":
    main()

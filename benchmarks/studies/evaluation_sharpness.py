"""What it costs to evaluate a network on sharper images than it was trained on.

usage: python -m benchmarks.studies.evaluation_sharpness --output=FILE.csv WORKDIR...

Evaluates each finished bone-age training on its training and validation split, with the smoothing
of `boneage_jax.data.augment.unaugmented` and without.
"""

import argparse
import dataclasses
from pathlib import Path

import numpy as np

from benchmarks.provenance import write_rows
from boneage_jax.datasets import open_dataset
from boneage_jax.evaluation.evaluate_split import evaluate_split, with_labels
from boneage_jax.inference.load_trained import Trained, load_trained

_GEOMETRY = ("rotate", "translate", "zoom", "shear")


def without_smoothing(trained: Trained) -> Trained:
    """The same network with a config that moves nothing, and so smooths nothing."""
    config = trained.network.config.copy_and_resolve_references()
    with config.unlocked():
        for name in _GEOMETRY:
            config.augment[name] = 0.0
    return dataclasses.replace(trained, network=dataclasses.replace(trained.network, config=config))


def main() -> None:
    """Writes one line per run, split and variant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR")
    args = parser.parse_args()
    rows = []
    for workdir in args.workdirs:
        trained = load_trained(workdir, task="bone_age")
        dataset = open_dataset(trained.network.config.data)
        for name, variant in (("smoothed", trained), ("sharp", without_smoothing(trained))):
            for split in (dataset.split("train"), dataset.split("validation")):
                _, found = evaluate_split(
                    variant.network, variant.variables, split, keys=variant.network.task.reported
                )
                found = with_labels(found, split)
                error = found["predicted_age"] - found["true_age"]
                rows.append(
                    {
                        "run": Path(workdir).name,
                        "split": split.name,
                        "evaluation": name,
                        "mae": f"{np.abs(error).mean():.3f}",
                        "bias": f"{error.mean():.3f}",
                        "n": len(error),
                    }
                )
                print(rows[-1])
    write_rows(args.output, rows, vars(args))


if __name__ == "__main__":
    main()

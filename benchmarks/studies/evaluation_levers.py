"""The levers that act on a trained network alone: mirrored and augmented views, bias correction.

usage: python -m benchmarks.studies.evaluation_levers --output=FILE.csv WORKDIR...

Evaluates each finished bone-age training on its validation split with each of them; bias
correction is cross-fitted there, as in a report. WORKDIRs of one recipe share everything but the
seed; their names are those of sweeps, ARM-BUDGET-SEED.
"""

import argparse
import csv
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.provenance import write_provenance
from boneage_jax.data.source import Split
from boneage_jax.datasets import open_dataset
from boneage_jax.evaluation.evaluate_split import corrected, evaluate_split, with_labels
from boneage_jax.inference.load_trained import Trained, load_trained
from boneage_jax.inference.network import Rows
from boneage_jax.runtime.compile_cache import use_compile_cache


def evaluated(trained: Trained, split: Split, **changes: object) -> Rows:
    """The predictions of a network whose config has `changes`."""
    config = trained.network.config.copy_and_resolve_references()
    with config.unlocked():
        config.update(changes)
    network = dataclasses.replace(trained.network, config=config)
    keys = network.task.reported
    _, rows = evaluate_split(network, trained.variables, split, keys=keys)
    return corrected(with_labels(rows, split), config)


def levers(trained: Trained, split: Split) -> Iterator[tuple[str, Rows]]:
    """Every lever with its predictions; the first is the network without any."""
    yield "plain", evaluated(trained, split, test_flips=False, test_views=0)
    yield "flip", evaluated(trained, split, test_flips=True, test_views=0)
    for method in ("shift", "line"):
        yield f"flip, {method}", evaluated(trained, split, test_flips=True, bias_correction=method)
    for views in (4, 16):
        yield f"flip, {views} views", evaluated(trained, split, test_flips=True, test_views=views)


def main() -> None:
    """Writes one line per run and lever."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR")
    args = parser.parse_args()
    use_compile_cache()
    table = []
    for workdir in args.workdirs:
        trained = load_trained(workdir, task="bone_age")
        data = trained.network.config.data
        split = open_dataset(data).split(data.eval_split)
        for name, rows in levers(trained, split):
            error = rows["predicted_age"] - rows["true_age"]
            table.append(
                {
                    "run": Path(workdir).name,
                    "lever": name,
                    "mae": f"{np.abs(error).mean():.3f}",
                    "bias": f"{error.mean():.3f}",
                    "n": len(error),
                }
            )
            print(table[-1])
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with args.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, table[0].keys())
        writer.writeheader()
        writer.writerows(table)
    write_provenance(args.output, vars(args))


if __name__ == "__main__":
    main()

"""The levers that act on a trained network alone: mirrored, magnified and augmented views, bias.

usage: python -m benchmarks.studies.evaluation_levers --output=FILE.csv
       [--zooms=LIST | --atlas=LIST] WORKDIR...

Evaluates each finished bone-age training on its validation split with each of them; bias
correction is cross-fitted there, as in a report. WORKDIRs of one recipe share everything but the
seed; their names are those of sweeps, ARM-BUDGET-SEED. --zooms tries magnifications alone, with
mirror images: `--zooms="1 1.14 1,1.14"` reads at one, at the other, and averages both. --atlas
tries values of `config.test_atlas` on what the config of the run reads: `--atlas="3 4 5"`.
"""

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.provenance import write_rows
from boneage_jax.data.source import Split
from boneage_jax.datasets import open_dataset
from boneage_jax.evaluation.evaluate_split import corrected, evaluate_split, with_labels
from boneage_jax.inference.atlas_ages import AtlasAges
from boneage_jax.inference.bias_correction import Correction
from boneage_jax.inference.load_trained import Trained, load_trained
from boneage_jax.inference.network import Rows
from boneage_jax.runtime.compile_cache import use_compile_cache
from boneage_jax.tasks.metrics import bootstrap_interval


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
    read_once = {"test_flips": False, "test_zooms": "", "test_views": 0}
    mirrored = read_once | {"test_flips": True}
    yield "plain", evaluated(trained, split, **read_once)
    yield "flip", evaluated(trained, split, **mirrored)
    for method in ("shift", "line"):
        rows = evaluated(trained, split, **mirrored, bias_correction=method)
        yield f"flip, {method}", rows
    for views in (4, 16):
        rows = evaluated(trained, split, **mirrored | {"test_views": views})
        yield f"flip, {views} views", rows


def magnifications(trained: Trained, split: Split, zooms: str) -> Iterator[tuple[str, Rows]]:
    """The predictions with mirror images at each list of magnifications."""
    for zoom in zooms.split():
        rows = evaluated(trained, split, test_flips=True, test_zooms=zoom, test_views=0)
        yield f"flip, zoom {zoom}", rows


def atlases(trained: Trained, split: Split, labels: Split, deviations: str) -> Iterator[Any]:
    """The predictions as they are, and moved to the ages of an atlas of each deviation."""
    rows = evaluated(trained, split, test_atlas=0.0)
    yield "network", rows
    config = trained.network.config
    for deviation in deviations.split():
        known = labels.labels
        atlas = AtlasAges.fit(known["bone_age"], known["male"], float(deviation))
        yield f"atlas {deviation}", corrected(rows, config, Correction(), atlas)


def main() -> None:
    """Writes one line per run and lever."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--zooms", default="", metavar="LIST")
    parser.add_argument("--atlas", default="", metavar="LIST")
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR")
    args = parser.parse_args()
    use_compile_cache()
    table = []
    for workdir in args.workdirs:
        trained = load_trained(workdir, task="bone_age")
        data = trained.network.config.data
        dataset = open_dataset(data)
        split = dataset.split(data.eval_split)
        if args.atlas:
            found = atlases(trained, split, dataset.split(data.train_split), args.atlas)
        elif args.zooms:
            found = magnifications(trained, split, args.zooms)
        else:
            found = levers(trained, split)
        for name, rows in found:
            error = rows["predicted_age"] - rows["true_age"]
            low, high = bootstrap_interval(np.abs(error))
            known = rows["male"] >= 0
            right = (rows["p_male"] > 0.5) == (rows["male"] == 1)
            table.append(
                {
                    "run": Path(workdir).name,
                    "lever": name,
                    "mae": f"{np.abs(error).mean():.3f}",
                    "mae_low": f"{low:.3f}",
                    "mae_high": f"{high:.3f}",
                    "sex_accuracy": f"{right[known].mean():.4f}",
                    "bias": f"{error.mean():.3f}",
                    "n": len(error),
                }
            )
            print(table[-1])
    write_rows(args.output, table, vars(args))


if __name__ == "__main__":
    main()

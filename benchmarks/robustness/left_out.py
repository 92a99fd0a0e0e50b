"""Pictures without a hand of kinds that a view network was not fitted to: how many are rejected.

usage: python -m benchmarks.robustness.left_out --workdir=DIR --output=FILE.csv [--kinds=A,B]
           [--steps=1500]

Fits a view network to the training radiographs of a run without each kind in turn, with the
threshold set on the first half of the validation split. A row per fit: parts rejected of the kind
left out, of photographs and slices (see stress.py; no fit knows them), and of the second half of
the validation radiographs.
"""

import argparse
from pathlib import Path

import numpy as np

from benchmarks.provenance import write_rows
from benchmarks.robustness.stress import photographs, slices
from boneage_jax.config import load_config
from boneage_jax.data.files import fit_square
from boneage_jax.data.handless import KINDS, draw_handless
from boneage_jax.datasets import open_dataset
from boneage_jax.inference.calibration import Calibration
from boneage_jax.inference.view import View
from boneage_jax.training.fit_view import fit_view

_DRAWN = 500
_FITTED = 4000


def main() -> None:
    """Writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--workdir", required=True, type=Path)
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--steps", type=int, default=1500)
    args = parser.parse_args()
    dataset = open_dataset(load_config(args.workdir / "config.json").data)
    calibration = Calibration.load(args.workdir / "calibration.npz")
    fitted = list(dataset.split("train").sample(_FITTED).images())
    validation = list(dataset.split("validation").images())
    half, size = len(validation) // 2, dataset.image_size
    table = []
    for kind in args.kinds.split(","):
        others = [name for name in KINDS if name != kind]
        weights, flops = fit_view(fitted, args.steps, kinds=others)
        view = View.calibrated(weights, validation[:half])
        rng = np.random.default_rng(1)
        pictures = {
            "left_out": [draw_handless(kind, rng, 400) for _ in range(_DRAWN)],
            "photographs": photographs(),
            "slices": slices(),
            "radiographs": validation[half:],
        }
        row: dict[str, object] = {"kind": kind, "steps": args.steps, "fit_flops": flops}
        for name, of_kind in pictures.items():
            if of_kind:
                squares = [fit_square(view.put_right(image)[0], size) for image in of_kind]
                near = calibration.distance(squares) <= calibration.max_distance
                accepted = near & view.judge(squares)[0]
                row |= {f"{name}_n": len(squares), f"{name}_rejected": f"{1 - accepted.mean():.4f}"}
        table.append(row)
        print(*row.values(), flush=True)
    write_rows(args.output, table, vars(args))


if __name__ == "__main__":
    main()

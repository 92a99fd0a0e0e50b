"""What is left of age and interval where radiographs are small (docs/robustness.md).

usage: python -m benchmarks.robustness.small --images=FOLDER --csv=FILE --ids=FILE --output=FILE.csv
           [--limit=400] [--sides=40,60,80,100,150] WORKDIR

Shrinks radiographs with known ages until their short side has a given number of pixels, and reads
them: mean absolute error with its bootstrap interval, and the coverage of the 95 % intervals, over
accepted and rejected images alike. --images, --csv, --ids and --limit are those of grain.py.
"""

import argparse

import cv2
import numpy as np

from benchmarks.provenance import write_rows
from benchmarks.robustness.stress import add_radiograph_arguments, read_radiographs
from boneage_jax.inference.predictor import Predictor, load_predictor
from boneage_jax.runtime.compile_cache import use_compile_cache
from boneage_jax.tasks.metrics import bootstrap_interval


def shrunk(image: np.ndarray, side: int) -> np.ndarray:
    """Shrinks an image, uint8 [H, W], to a short side of `side` pixels, if it is larger."""
    factor = side / min(image.shape)
    if factor >= 1:
        return image
    height, width = (max(1, round(factor * length)) for length in image.shape)
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA))


def row_of(
    predictor: Predictor, name: str, images: list[np.ndarray], true: np.ndarray, male: list[int]
) -> dict[str, object]:
    """Returns the row of one size."""
    found = predictor(images, male)
    errors = np.abs(found["bone_age_months"] - true)
    low, high = bootstrap_interval(errors)
    inside = (found["low_months"] <= true) & (true <= found["high_months"])
    return {
        "short_side": name,
        "n": len(images),
        "mae": round(float(errors.mean()), 2),
        "low": round(low, 2),
        "high": round(high, 2),
        "covered": round(float(inside.mean()), 4),
        "accepted": round(float((found["accepted"] == 1).mean()), 4),
    }


def main() -> None:
    """Writes the rows of one network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_radiograph_arguments(parser)
    parser.add_argument("--sides", default="40,60,80,100,150")
    parser.add_argument("workdir", metavar="WORKDIR")
    args = parser.parse_args()
    use_compile_cache()
    images, true, male = read_radiographs(args.images, args.csv, args.ids, args.limit)
    predictor = load_predictor(args.workdir)
    rows = [row_of(predictor, "as they are", images, true, male)]
    for side in map(int, args.sides.split(",")):
        small = [shrunk(image, side) for image in images]
        rows.append(row_of(predictor, str(side), small, true, male))
    write_rows(args.output, rows, vars(args))
    print(*rows, sep="\n")


if __name__ == "__main__":
    main()

"""Noise and compression by the contrast of the radiographs that they fall on (docs/robustness.md).

usage: python -m benchmarks.robustness.grain --images=FOLDER --csv=FILE --ids=FILE --output=FILE.csv
           [--limit=400] WORKDIR...

Reads radiographs with known ages untouched, noisy, compressed and blurred, as stress.py does, and
writes the error of each group of contrast: the standard deviation of the grey levels of the
untouched radiograph, cut at its quantiles 0.1, 0.25, 0.5 and 0.75. FILE of --csv has columns as
`id,boneage,male`, that of --ids a column `id`: predictions.csv of a run names its validation split,
in no order; the first --limit of them are read.
"""

import argparse
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.provenance import write_rows
from benchmarks.robustness.stress import add_radiograph_arguments, read_radiographs
from boneage_jax.evaluation.stresses import STRESSES
from boneage_jax.inference.predictor import load_predictor
from boneage_jax.runtime.compile_cache import use_compile_cache
from boneage_jax.tasks.metrics import bootstrap_interval

CHANGES = ("untouched", "noise of sd 12", "JPEG quality 30", "blurred", "half resolution")
_CUTS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)


def rows_of(
    workdir: str, images: Sequence[np.ndarray], true: np.ndarray, male: Sequence[int]
) -> Iterator[dict[str, object]]:
    """Yields a row for each change and group of contrast, and one for all groups."""
    predictor = load_predictor(workdir)
    contrast = np.array([image.std() for image in images])
    cuts = np.quantile(contrast, _CUTS)
    groups = {"all": np.ones(len(images), bool)}
    for low, high in itertools.pairwise(cuts):
        above = contrast >= low if low == cuts[0] else contrast > low
        groups[f"{low:.1f} to {high:.1f}"] = above & (contrast <= high)
    for change in CHANGES:
        draw = STRESSES[change].draw
        changed = [draw(image, np.random.default_rng(at)) for at, image in enumerate(images)]
        found = predictor(changed, male)
        error = np.abs(found["bone_age_months"] - true)
        for name, inside in groups.items():
            low, high = bootstrap_interval(error[inside])
            yield {
                "network": Path(workdir).name,
                "change": change,
                "contrast": name,
                "n": int(inside.sum()),
                "mae": round(float(error[inside].mean()), 2),
                "low": round(low, 2),
                "high": round(high, 2),
                "accepted": round(float((found["accepted"][inside] == 1).mean()), 4),
            }


def main() -> None:
    """Writes the rows of all networks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_radiograph_arguments(parser)
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR")
    args = parser.parse_args()
    use_compile_cache()
    images, true, male = read_radiographs(args.images, args.csv, args.ids, args.limit)
    rows = [row for each in args.workdirs for row in rows_of(each, images, true, male)]
    write_rows(args.output, rows, vars(args))
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()

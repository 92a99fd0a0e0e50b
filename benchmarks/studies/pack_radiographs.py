"""Packs a folder of radiographs into a small copy, to be carried to a machine without a network.

usage: python -m benchmarks.studies.pack_radiographs --raw_dir=DIR --output=FOLDER
           [--size=224] [--mebibytes=60]

DIR has the layout of Kaggle or another that `rsna_bone_age` reads. FOLDER gets that of Kaggle:
squares of `size` pixels as JPEG, height and width resized alike, of the highest quality at which
all fit, found on every fiftieth. Prepare it with data.fit=stretch. The terms of the originals hold
for the copy.
"""

import argparse
import csv
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from boneage_jax.data.files import fit_square, read_grey
from boneage_jax.errors import InputError
from tfds_rsna.decode import ZipMember
from tfds_rsna.rsna_bone_age.layouts import Radiograph, find_splits

_QUALITIES = range(30, 96)
_NAME = "boneage-training-dataset"


def jpeg(radiograph: Radiograph, size: int, quality: int) -> bytes:
    """Returns the square of a radiograph as a JPEG file."""
    assert not isinstance(radiograph.source, ZipMember)
    square = fit_square(read_grey(radiograph.source), size, "stretch")
    return cv2.imencode(".jpg", square, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def best_quality(radiographs: list[Radiograph], size: int, budget: int) -> int:
    """Returns the highest quality whose files take at most `budget` bytes, by a sample.

    Raises:
      InputError: not even the lowest does.
    """
    sample = radiographs[::50]
    for quality in reversed(_QUALITIES):
        total = sum(len(jpeg(one, size, quality)) for one in sample) / len(sample)
        if total * len(radiographs) <= 0.98 * budget:
            return quality
    raise InputError(f"--mebibytes: {len(radiographs)} images of {size} pixels do not fit")


def main() -> None:
    """Writes the copy and prints its quality and size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--raw_dir", required=True, type=Path)
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--mebibytes", type=float, default=60.0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = list(find_splits(args.raw_dir, Path(scratch))["train"])
        quality = best_quality(found, args.size, int(args.mebibytes * 2**20))
        images = args.output / _NAME / _NAME
        images.mkdir(parents=True, exist_ok=True)

        def write(radiograph: Radiograph) -> int:
            return (images / f"{radiograph.id}.jpg").write_bytes(
                jpeg(radiograph, args.size, quality)
            )

        with ThreadPoolExecutor() as pool:
            total = sum(pool.map(write, found))
    with (args.output / f"{_NAME}.csv").open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("id", "boneage", "male"))
        rows.writerows((one.id, f"{one.bone_age:g}", bool(one.male)) for one in found)
    ages = np.array([one.bone_age for one in found])
    print(
        f"{len(found)} images of {args.size} px, JPEG quality {quality}, {total / 2**20:.1f} MiB, "
        f"{ages.mean():.1f} months on average"
    )


if __name__ == "__main__":
    main()

"""Dice of hand masks at the size of the radiographs, against labels and against thresholding.

usage: python -m benchmarks.studies.hand_masks --images=DIR --labels=DIR --ids=FILE.csv
           --output=FILE.csv NAME=MASKDIR...

IDS is a CSV with a column id (predictions.csv of a run: the images that it never saw). Each MASKDIR
holds what `python -m boneage_jax.segment` wrote. Otsu's threshold (IEEE Trans. SMC 9, 1979), of the
radiograph and of its blurred copy, cleaned up in the same way, is the method without learning.
"""

import argparse
import csv
from pathlib import Path

import cv2
import numpy as np

from benchmarks.provenance import write_provenance
from boneage_jax.data.files import read_grey
from boneage_jax.data.find_files import find_images
from boneage_jax.data.masks import clean_mask


def otsu(image: np.ndarray, blur: float = 0.0) -> np.ndarray:
    """The brighter side of Otsu's threshold, largest part, holes filled; bool [H, W]."""
    if blur:
        image = cv2.GaussianBlur(image, (0, 0), blur)
    _, mask = cv2.threshold(image, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    return clean_mask(mask > 0)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """2 |a and b| / (|a| + |b|)."""
    return float(2 * (a & b).sum() / max(a.sum() + b.sum(), 1))


def main() -> None:
    """Writes one line per image and prints the means and the worst."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--images", required=True)
    parser.add_argument("--labels", required=True, type=Path)
    parser.add_argument("--ids", required=True, type=Path)
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("found", nargs="+", metavar="NAME=MASKDIR")
    args = parser.parse_args()
    with args.ids.open() as file:
        ids = [row["id"] for row in csv.DictReader(file)]
    images = {path.stem: path for path in find_images([args.images])}
    methods = dict(pair.split("=", 1) for pair in args.found)
    rows = []
    for name in ids:
        image, truth = read_grey(images[name]), read_grey(args.labels / f"{name}.png") > 127
        row = {"id": name, "otsu": dice(otsu(image), truth)}
        row["otsu_blurred"] = dice(otsu(image, 3.0), truth)
        for method, folder in methods.items():
            row[method] = dice(read_grey(Path(folder) / f"{name}.png") > 127, truth)
        rows.append(row)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with args.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {k: v if k == "id" else f"{v:.5f}" for k, v in row.items()} for row in rows
        )
    for method in list(rows[0])[1:]:
        values = np.array([row[method] for row in rows])
        print(
            f"{method:>16}: mean {values.mean():.4f}, median {np.median(values):.4f}, "
            f"worst {values.min():.4f} ({rows[int(values.argmin())]['id']}), n = {len(values)}"
        )
    write_provenance(args.output, vars(args))


if __name__ == "__main__":
    main()

"""Radiographs whose training ages are in part what a trained network says: distillation by labels.

usage: python -m benchmarks.studies.teacher_labels --images=FOLDER --output=FOLDER
           [--network=rsna_lite0_256] [--weight=0.5]

Writes a copy of the RSNA challenge data (images as hard links) with the splits of the `rsna`
presets as folders and tables of their own. The age of a training image becomes
(1 - weight) label + weight teacher (Hinton et al. 2015, arXiv:1503.02531, for one number); the
teacher reads each image and its mirror image as they are stored, with the sex. Validation keeps its
labels, the locked images are left out. A training on the output by `cls:rsna10t
--config.data.locked_fraction=0` then tells what a teacher is worth (docs/recipes.md). The FLOPs of
reading are printed; those of the teacher's own training are in its report.
"""

import argparse
import csv
from pathlib import Path

import numpy as np

import boneage_jax
from boneage_jax.cli import load_recipe, prepare_jax
from boneage_jax.data.file_names import image_stem
from boneage_jax.data.find_files import find_images
from boneage_jax.data.source import Split
from boneage_jax.datasets import open_dataset
from boneage_jax.inference.predictor import Predictor

_OLDEST = 240.0  # months, the greatest that a table may hold
_CHUNK = 512  # images held in memory
_HEADERS = {
    "train": ("id", "boneage", "male"),
    "validation": ("Image ID", "Bone Age (months)", "male"),
}


def teacher_ages(predictor: Predictor, split: Split) -> np.ndarray:
    """Returns what a network says of a split, before calibration, in months: float64 [n]."""
    male = split.labels["male"].astype(int)
    found = []
    for start in range(0, len(split), _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, len(split)))
        squares = list(split.take(split.name, rows).images())
        found.append(predictor.uncalibrated(squares, male[rows])["predicted_age"])
    return np.concatenate(found).astype(np.float64)


def write_split(folder: Path, split: Split, ages: np.ndarray, files: dict[str, Path]) -> None:
    """Writes one split: a folder with links to its images, and its table beside the folder."""
    images = folder / f"boneage-{split.name}-dataset"
    images.mkdir(parents=True)
    with (folder / f"{images.name}.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_HEADERS[split.name])
        for name, age, male in zip(split.labels["id"], ages, split.labels["male"], strict=True):
            source = files[str(name)]
            (images / source.name).hardlink_to(source)
            writer.writerow([name, f"{age:.3f}", bool(male)])


def main() -> None:
    """Reads the training images with the teacher and writes both splits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--images", required=True, type=Path)
    parser.add_argument("--output", required=True, type=Path, help="a folder that is not there yet")
    parser.add_argument("--network", default="rsna_lite0_256")
    parser.add_argument("--weight", default=0.5, type=float, help="of the teacher, 0 to 1")
    args = parser.parse_args()
    prepare_jax(trains=False)
    config = load_recipe("cls:rsna10t")
    config.data.raw_dir = str(args.images)
    splits = open_dataset(config.data).splits
    files = {image_stem(path): path for path in find_images([args.images])}

    train, validation = splits["train"], splits["validation"]
    predictor = boneage_jax.load_predictor(args.network)
    labels = train.labels["bone_age"].astype(np.float64)
    teacher = teacher_ages(predictor, train)
    ages = np.clip((1 - args.weight) * labels + args.weight * teacher, 0, _OLDEST)
    write_split(args.output, train, ages, files)
    write_split(args.output, validation, validation.labels["bone_age"], files)
    flops = len(train) * predictor.network.eval_flops // predictor.batch_size
    print(f"teacher and label differ by {np.abs(teacher - labels).mean():.2f} months on average")
    print(f"FLOPs of reading: {flops:.3g}")


if __name__ == "__main__":
    main()

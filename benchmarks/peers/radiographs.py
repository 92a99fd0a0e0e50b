"""Synthetic radiographs of full size as PNG files with a table of labels."""

import csv
from pathlib import Path

import cv2
import numpy as np

from boneage_jax.benchmarking.records import synthetic_radiograph
from boneage_jax.data.files import fit_square, read_grey
from boneage_jax.data.find_files import find_images

# Height and width in pixels, about the median of the RSNA training radiographs.
HEIGHT, WIDTH = 2044, 1514


def write_radiographs(folder: Path, count: int, height: int = HEIGHT, width: int = WIDTH) -> Path:
    """Writes `count` PNGs into FOLDER/images and FOLDER/labels.csv (file, age, sex)."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "age", "sex"])
        for index in range(count):
            name = f"{index:05d}.png"
            cv2.imwrite(str(images / name), synthetic_radiograph(rng, height, width))
            writer.writerow([f"images/{name}", int(rng.integers(12, 216)), "MF"[index % 2]])
    return folder


def link_radiographs(folder: Path, source: Path, count: int) -> Path:
    """The same layout with links to the first `count` images of `source`; labels are made up."""
    found = [path.resolve() for path in find_images([str(source)])][:count]
    (folder / "images").mkdir(parents=True, exist_ok=True)
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "age", "sex"])
        for index, path in enumerate(found):
            (folder / "images" / path.name).symlink_to(path)
            writer.writerow([f"images/{path.name}", 12 + index % 200, "MF"[index % 2]])
    return folder


def write_resized(folder: Path, source: Path, size: int) -> Path:
    """Copies of all images of `source` as PNG squares of `size` pixels in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        cv2.imwrite(str(folder / f"{path.stem}.png"), fit_square(read_grey(path), size))
    return folder

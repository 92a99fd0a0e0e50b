"""Packs a folder of radiographs into one small file, to be carried to a machine without a network.

usage: python -m benchmarks.studies.pack_radiographs --raw_dir=DIR --output=PACK.npz
           [--size=256] [--mebibytes=40]
       python -m benchmarks.studies.pack_radiographs --unpack=PACK.npz --output=FOLDER

DIR has the layout of Kaggle or another that `rsna_bone_age` reads. The pack holds squares of `size`
pixels, height and width resized alike, as lossy WebP of the highest quality at which all fit, found
on every fiftieth. FOLDER gets the layout of Kaggle, as PNG. Prepare it with data.fit=stretch. The
terms of the originals hold for the copy.

Grey levels are spread before the compression and put back after it: of many radiographs the hand
takes 30 of 256 levels, beside a bright marker, and WebP would round its detail away. A network
trained on such copies read the originals up to 70 months off.
"""

import argparse
import csv
import io
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from boneage_jax.data.files import fit_square, read_grey
from boneage_jax.errors import InputError
from tfds_rsna.decode import ZipMember
from tfds_rsna.rsna_bone_age.layouts import Radiograph, find_splits

_QUALITIES = range(30, 96)
_NAME = "boneage-training-dataset"
# Grey levels in the pack: the darkest 0.5 % of the pixels take 0..6, the next 98.5 % 14..196, the
# brightest 210..255. What the compression puts into the gaps goes back to the nearest common level:
# a pixel one level brighter than the common ones would else become some levels brighter.
_LEVELS = (0, 6, 14, 196, 210, 255)


class Knots(NamedTuple):
    """Grey levels of a radiograph: the darkest 0.5 %, 99 % and 100 % of its pixels."""

    low: int
    high: int
    last: int


def knots_of(image: np.ndarray) -> Knots:
    """Returns increasing knots of an image, uint8."""
    low, high = int(np.percentile(image, 0.5)), int(np.ceil(np.percentile(image, 99.0)))
    high = max(high, low + 1)
    return Knots(low, high, max(int(image.max()), high + 1))


def spread(image: np.ndarray, knots: Knots) -> np.ndarray:
    """Returns the image, uint8, with most of the grey levels for its common ones."""
    return _table(_levels(knots), _LEVELS)[image]


def unspread(image: np.ndarray, knots: Knots) -> np.ndarray:
    """Undoes `spread`, but for rounding."""
    low, high, last = knots
    return _table(_LEVELS, (0, low, low, high, high, last))[image]


def _levels(knots: Knots) -> list[float]:
    """Returns the grey levels of a radiograph that `_LEVELS` stand for, increasing."""
    low, high, last = knots
    return [min(0, low - 2), low - 1, low, high, high + 1, max(last, high + 2)]


def _table(before: Sequence[float], after: Sequence[float]) -> np.ndarray:
    return np.clip(np.rint(np.interp(np.arange(256), before, after)), 0, 255).astype(np.uint8)


def encode(radiograph: Radiograph, size: int, quality: int) -> tuple[bytes, Knots]:
    """Returns the square of a radiograph as WebP, with the knots that `decode` needs."""
    assert not isinstance(radiograph.source, ZipMember)
    square = fit_square(read_grey(radiograph.source), size, "stretch")
    knots, file = knots_of(square), io.BytesIO()
    Image.fromarray(spread(square, knots)).save(file, "WEBP", quality=quality, method=4)
    return file.getvalue(), knots


def decode(data: bytes, knots: Knots) -> np.ndarray:
    """Returns the square, uint8 [size, size]."""
    return unspread(np.asarray(Image.open(io.BytesIO(data)).convert("L")), knots)


def best_quality(radiographs: list[Radiograph], size: int, budget: int) -> int:
    """Returns the highest quality whose files take at most `budget` bytes, by a sample.

    Raises:
      InputError: not even the lowest does.
    """
    sample = radiographs[::50]
    low, high = _QUALITIES[0] - 1, _QUALITIES[-1]
    while low < high:  # bytes grow with the quality
        middle = (low + high + 1) // 2
        total = sum(len(encode(one, size, middle)[0]) for one in sample) / len(sample)
        low, high = (middle, high) if total * len(radiographs) <= budget else (low, middle - 1)
    if low not in _QUALITIES:
        raise InputError(f"--mebibytes: {len(radiographs)} images of {size} pixels do not fit")
    return low


def pack(raw_dir: Path, output: Path, size: int, budget: int) -> str:
    """Writes the pack and returns a line about it."""
    with tempfile.TemporaryDirectory() as scratch:
        found = list(find_splits(raw_dir, Path(scratch))["train"])
        quality = best_quality(found, size, budget)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            files = list(pool.map(lambda one: encode(one, size, quality), found))
    blob = b"".join(data for data, _ in files)
    with output.open("wb") as file:
        np.savez(
            file,
            id=np.array([one.id for one in found]),
            boneage=np.array([one.bone_age for one in found]),
            male=np.array([bool(one.male) for one in found]),
            knots=np.array([knots for _, knots in files], np.int16),
            size=np.array([len(data) for data, _ in files]),
            blob=np.frombuffer(blob, np.uint8),
        )
    mebibytes = output.stat().st_size / 2**20
    return f"{len(found)} images of {size} px, WebP quality {quality}, {mebibytes:.1f} MiB"


def unpack(packed: Path, folder: Path) -> str:
    """Writes the radiographs of a pack in the layout of Kaggle and returns a line about them."""
    images = folder / _NAME / _NAME
    images.mkdir(parents=True, exist_ok=True)
    with np.load(packed, allow_pickle=False) as file:
        columns = {key: file[key] for key in file.files}
    ends = np.cumsum(columns["size"])
    blob = columns["blob"].tobytes()

    def write(row: int) -> None:
        data = blob[ends[row] - columns["size"][row] : ends[row]]
        square = decode(data, Knots(*(int(level) for level in columns["knots"][row])))
        Image.fromarray(square).save(images / f"{columns['id'][row]}.png", compress_level=1)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(write, range(len(ends))))
    with (folder / f"{_NAME}.csv").open("w", newline="") as table:
        rows = csv.writer(table, lineterminator="\n")
        rows.writerow(("id", "boneage", "male"))
        labels = zip(columns["id"], columns["boneage"], columns["male"], strict=True)
        rows.writerows((int(one), f"{age:g}", bool(male)) for one, age, male in labels)
    return f"{len(ends)} images, {columns['boneage'].mean():.1f} months on average"


def main() -> None:
    """Packs or unpacks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--raw_dir", type=Path)
    parser.add_argument("--unpack", type=Path, metavar="PACK.npz")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--mebibytes", type=float, default=40.0)
    args = parser.parse_args()
    if bool(args.raw_dir) == bool(args.unpack):
        parser.error("give one of --raw_dir and --unpack")
    if args.unpack:
        print(unpack(args.unpack, args.output))
    else:
        print(pack(args.raw_dir, args.output, args.size, int(args.mebibytes * 2**20)))


if __name__ == "__main__":
    main()

"""Errors, rejections and repairs of a trained network on radiographs that are not in order.

usage: python -m benchmarks.robustness.stress --workdir=DIR --images=FOLDER --csv=FILE
           --output=FILE.csv [--ids=FILE] [--limit=N]

FILE of --csv has columns as `id,boneage,male`, that of --ids a column `id`: predictions.csv of the
run names its validation split. A row per stress: months of error with its bootstrap interval,
change against the untouched radiographs, parts accepted and put right, and the error of those that
are accepted. Then a row per kind of pictures without a hand; photographs need scikit-image, slices
are the samples that come with pydicom.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

import boneage_jax
from benchmarks.provenance import write_rows
from boneage_jax.data.file_names import image_stem
from boneage_jax.data.files import read_grey
from boneage_jax.data.find_files import find_images
from boneage_jax.data.handless import KINDS, draw_handless
from boneage_jax.data.label_table import read_table
from boneage_jax.errors import InputError
from boneage_jax.evaluation.stress_table import stress_rows
from boneage_jax.inference.predictor import Predictor
from boneage_jax.runtime.compile_cache import use_compile_cache

_DRAWN = 200  # pictures of each kind
_FINE = ("accepted", "put_right", "coverage_accepted")  # columns of four decimals, others have two


def read_labels(path: Path) -> dict[str, tuple[float, int]]:
    """Returns months and sex (1 male) by id."""
    table = read_table(path)
    male = {"true": 1, "m": 1, "1": 1, "male": 1}
    return {
        row["id"]: (float(row["boneage"]), male.get(row["male"].lower(), 0))
        for _, row in table.rows
    }


def add_radiograph_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `read_radiographs`, and --output."""
    for name in ("images", "csv", "ids", "output"):
        parser.add_argument(f"--{name}", required=True, type=Path)
    parser.add_argument("--limit", type=int, default=400)


def read_radiographs(
    images: Path, csv: Path, ids: Path, limit: int
) -> tuple[list[np.ndarray], np.ndarray, list[int]]:
    """Reads radiographs with known ages.

    Args:
      images: a folder of image files.
      csv: a table, see `read_labels`.
      ids: a table with a column `id`.
      limit: how many of these are read, the first ones.

    Returns:
      (uint8 [H, W] each, true ages in months [n], 1 for male or 0 each).
    """
    labels = read_labels(csv)
    files = {image_stem(path): path for path in find_images([str(images)])}
    wanted = [row["id"] for _, row in read_table(ids).rows][:limit]
    true = np.array([labels[name][0] for name in wanted])
    return [read_grey(files[name]) for name in wanted], true, [labels[name][1] for name in wanted]


def stressed(
    predictor: Predictor, images: Sequence[Path], labels: Sequence[tuple[float, int]]
) -> Iterator[dict[str, object]]:
    """Yields a row per stress, numbers as text."""
    true = np.array([age for age, _ in labels])
    pictures = [read_grey(path) for path in images]
    for row in stress_rows(predictor, pictures, true, [sex for _, sex in labels]):
        yield {
            key: ""
            if value is None
            else f"{value:.{4 if key in _FINE else 2}f}"
            if isinstance(value, float)
            else value
            for key, value in row.items()
        }


def handless(predictor: Predictor) -> Iterator[dict[str, object]]:
    """Yields a row per kind of pictures without a hand."""
    rng = np.random.default_rng(1)
    sets = {kind: [draw_handless(kind, rng, 400) for _ in range(_DRAWN)] for kind in KINDS}
    sets |= {"photographs": photographs(), "slices": slices()}
    for kind, pictures in sets.items():
        if pictures:
            accepted = predictor(pictures)["accepted"] == 1
            yield {"what": kind, "n": len(pictures), "accepted": f"{accepted.mean():.4f}"}


def photographs() -> list[np.ndarray]:
    """Returns the pictures that come with scikit-image; none if it is not installed."""
    try:
        import skimage.data
    except ImportError:
        return []
    folder = Path(skimage.data.__file__).parent
    found = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in sorted(folder.glob("*.*g"))]
    faces = np.load(folder / "lfw_subset.npy")[:100]
    return [image for image in found if image is not None] + [
        (255 * face).astype(np.uint8) for face in faces
    ]


def slices() -> list[np.ndarray]:
    """Returns the CT, MR and other pictures that come with pydicom and are readable."""
    from pydicom.data import data_manager

    found = []
    for path in sorted((Path(data_manager.__file__).parent / "test_files").glob("*.dcm")):
        try:
            found.append(read_grey(path))
        except InputError:
            continue
    return found


def main() -> None:
    """Writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--images", required=True)
    parser.add_argument("--csv", required=True, type=Path)
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--ids", type=Path)
    parser.add_argument("--limit", type=int, default=0)
    args = parser.parse_args()
    use_compile_cache()
    labels = read_labels(args.csv)
    if args.ids:
        wanted = {row["id"] for _, row in read_table(args.ids).rows}
        labels = {key: value for key, value in labels.items() if key in wanted}
    files = [path for path in find_images([args.images]) if image_stem(path) in labels]
    if args.limit:
        files = [files[n] for n in np.random.default_rng(0).permutation(len(files))[: args.limit]]
    predictor = boneage_jax.load_predictor(args.workdir, batch_size=32)
    table = []
    for rows in (
        stressed(predictor, files, [labels[image_stem(path)] for path in files]),
        handless(predictor),
    ):
        for row in rows:
            table.append(row)
            print(*row.values(), flush=True)
    write_rows(args.output, table, vars(args))


if __name__ == "__main__":
    main()

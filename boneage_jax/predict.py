"""Reads bone age from radiographs (PNG, JPEG, DICOM).

usage: python -m boneage_jax.predict --workdir=DIR --output=FILE.csv [--sex_csv=FILE] [--masks=DIR]
                                     PATH...

PATH: image files, folders or globs. One row per file: file, bone_age_months, low_months,
high_months (95 % interval), p_male, accepted, error. An unreadable file gets its row with the
error and the others go on; the exit status is 1 if no file could be read.
"""

import argparse
import csv
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from boneage_jax.data.files import find_images, read_grey
from boneage_jax.errors import InputError, door
from boneage_jax.runtime.cpu_memory import use_huge_pages
from boneage_jax.runtime.xla_flags import choose_for_cpu

if TYPE_CHECKING:
    from boneage_jax.inference.predictor import Predictor

COLUMNS = ("file", "bone_age_months", "low_months", "high_months", "p_male", "accepted", "error")
_SEXES = {"1": 1, "true": 1, "m": 1, "male": 1, "0": 0, "false": 0, "f": 0, "female": 0, "": -1}


def read_sexes(path: Path) -> dict[str, int]:
    """Reads a CSV with columns id and male; returns 1, 0 or -1 (blank) by id.

    Raises:
      InputError: unreadable file, missing column, a repeated id, or a value that is no sex.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"--sex_csv={path} cannot be read: {error}") from error
    if not rows or not {"id", "male"} <= rows[0].keys():
        raise InputError(f"--sex_csv={path} needs rows with the columns id,male")
    sexes: dict[str, int] = {}
    for number, row in enumerate(rows, start=2):
        key, value = (row["id"] or "").strip(), (row["male"] or "").strip().lower()
        if value not in _SEXES:
            raise InputError(f"{path} line {number}: male={value!r} must be True/False or 1/0")
        if key in sexes:
            raise InputError(f"{path} line {number}: id {key!r} appears twice")
        sexes[key] = _SEXES[value]
    return sexes


def predict_files(
    predictor: "Predictor", files: Sequence[Path], sexes: dict[str, int]
) -> Iterator[dict[str, str]]:
    """Yields one CSV row per file, in order; decoding runs in threads ahead of the network."""

    def decode(file: Path) -> np.ndarray | InputError:
        try:
            return predictor.fit(read_grey(file), file.stem)
        except InputError as error:
            return error

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        # Two batches decoded ahead: memory stays flat however many files there are.
        sources = iter(files)
        ahead = [
            (file, pool.submit(decode, file))
            for file in itertools.islice(sources, 2 * predictor.batch_size)
        ]
        while ahead:
            now, ahead = ahead[: predictor.batch_size], ahead[predictor.batch_size :]
            results = [(file, future.result()) for file, future in now]
            ahead += [
                (file, pool.submit(decode, file)) for file in itertools.islice(sources, len(now))
            ]
            good = [(f, r) for f, r in results if not isinstance(r, InputError)]
            male = [sexes.get(file.stem, -1) for file, _ in good]
            outputs = predictor.read([image for _, image in good], male)
            numbers = iter(range(len(good)))
            for file, result in results:
                if isinstance(result, InputError):
                    yield {"file": str(file), "accepted": "False", "error": str(result)}
                    continue
                at = next(numbers)
                row = {key: f"{values[at]:.4g}" for key, values in outputs.items()}
                yield row | {"file": str(file), "accepted": str(bool(outputs["accepted"][at]))}


def main() -> int:
    """The door."""
    parser = argparse.ArgumentParser("python -m boneage_jax.predict", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--workdir", required=True, help="folder of a finished training")
    parser.add_argument("--output", required=True, type=Path, help="CSV file to write")
    parser.add_argument("--sex_csv", type=Path, help="CSV with id,male; id is the file's stem")
    parser.add_argument(
        "--masks", default="", help="hand masks or a U-Net's workdir, where training had masks"
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="image files, folders, globs")
    args = parser.parse_args()
    files = find_images(args.paths)
    sexes = read_sexes(args.sex_csv) if args.sex_csv else {}
    if sexes and not any(file.stem in sexes for file in files):
        raise InputError(f"--sex_csv={args.sex_csv}: no id matches the stem of a given file")
    if args.output.is_dir() or not args.output.absolute().parent.is_dir():
        raise InputError(f"--output={args.output} must name a CSV file in a folder that exists")

    from boneage_jax.inference.predictor import load_predictor
    from boneage_jax.runtime.compile_cache import use_compile_cache
    from boneage_jax.runtime.compiler import tidy_heap

    use_compile_cache()
    tidy_heap()
    predictor = load_predictor(args.workdir, masks=args.masks)
    failed = rejected = 0
    part = args.output.with_name(args.output.name + ".part")
    try:
        with part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
            writer.writeheader()
            rows = predict_files(predictor, files, sexes)
            for row in tqdm(rows, total=len(files), unit="image", mininterval=0.5):
                writer.writerow(row)
                failed += bool(row.get("error"))
                rejected += row["accepted"] == "False" and not row.get("error")
        part.replace(args.output)
    except OSError as error:
        raise InputError(f"--output={args.output} cannot be written: {error.strerror}") from error
    print(
        f"{args.output}: {len(files) - failed} of {len(files)} files read, "
        f"{rejected} of them unlike the training radiographs, {failed} unreadable"
    )
    return int(failed == len(files))


def run() -> None:
    """Console script."""
    choose_for_cpu()
    use_huge_pages()
    sys.exit(door(main))


if __name__ == "__main__":
    run()

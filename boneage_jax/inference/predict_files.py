"""Writes predictions on many image files as rows of a CSV."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from boneage_jax.data.files import find_images, read_grey
from boneage_jax.errors import InputError
from boneage_jax.inference.read_ahead import decoding_threads, read_ahead
from boneage_jax.runtime.progress import progress
from boneage_jax.storage.safe_write import in_one_piece

if TYPE_CHECKING:
    from boneage_jax.inference.predictor import Predictor

_SEXES = {"1": 1, "true": 1, "m": 1, "male": 1, "0": 0, "false": 0, "f": 0, "female": 0, "": -1}


def check_arguments(
    paths: Sequence[str], output: Path, sex_csv: Path | None
) -> tuple[list[Path], dict[str, int]]:
    """Finds the image files and reads the sexes, before anything is compiled.

    Returns:
      (image files, sex by file stem).

    Raises:
      InputError: no image, a CSV that is damaged or matches none of them, or an `output` that is
        not in an existing folder.
    """
    files = find_images(paths)
    sexes = read_sexes(sex_csv) if sex_csv else {}
    if sexes and not any(file.stem in sexes for file in files):
        raise InputError(f"--sex_csv={sex_csv}: no id matches the stem of a given file")
    if output.is_dir() or not output.absolute().parent.is_dir():
        raise InputError(f"--output={output} must name a CSV file in a folder that exists")
    return files, sexes


def read_sexes(path: Path) -> dict[str, int]:
    """Reads a CSV with columns id and male; returns 1, 0 or -1 (blank) by id.

    Raises:
      InputError: an unreadable file, a missing column, a repeated id, or an invalid value.
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
    """Yields one CSV row per file, in order; threads decode ahead of the network."""

    def decode(file: Path) -> np.ndarray:
        return predictor.fit(read_grey(file), file.stem)

    with decoding_threads() as pool:
        for results in read_ahead(files, decode, predictor.batch_size, pool):
            good = [(f, r) for f, r in results if not isinstance(r, InputError)]
            male = [sexes.get(file.stem, -1) for file, _ in good]
            outputs = predictor.read([image for _, image in good], male)
            numbers = iter(range(len(good)))
            for file, result in results:
                if isinstance(result, InputError):
                    row = {"file": str(file), "error": str(result)}
                    yield row | ({"accepted": "False"} if "accepted" in outputs else {})
                    continue
                at = next(numbers)
                yield {"file": str(file)} | {k: _cell(v[at]) for k, v in outputs.items()}


def write_predictions(
    predictor: "Predictor", files: Sequence[Path], sexes: dict[str, int], output: Path
) -> tuple[int, int]:
    """Writes one CSV row per file and shows the progress.

    Returns:
      (number of unreadable files, number of files that were read but not accepted).

    Raises:
      InputError: the file cannot be written; an existing one is left unchanged.
    """
    failed = rejected = 0
    columns = ("file", *predictor.columns, "error")
    try:
        with (
            in_one_piece(output) as part,
            part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
        ):
            writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
            writer.writeheader()
            rows = predict_files(predictor, files, sexes)
            for row in progress(rows, total=len(files), unit="image"):
                writer.writerow(row)
                failed += bool(row.get("error"))
                rejected += row.get("accepted") == "False" and not row.get("error")
    except OSError as error:
        raise InputError(f"--output={output} cannot be written: {error.strerror}") from error
    return failed, rejected


def _cell(value: Any) -> str:
    if np.ndim(value):  # a vector of a user-defined task
        return " ".join(_cell(part) for part in np.ravel(value))
    if isinstance(value, np.bool_):
        return str(bool(value))
    return f"{value:.4g}" if np.issubdtype(value.dtype, np.floating) else str(value)

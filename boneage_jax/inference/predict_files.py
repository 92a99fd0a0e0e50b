"""Predicts many image files: rows of a CSV, JSON lines, or text for a person."""

import contextlib
import csv
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from tqdm import tqdm

from boneage_jax.data.counts import describe_counts, describe_notes
from boneage_jax.data.file_names import IMAGE_SUFFIXES, image_stem
from boneage_jax.data.find_files import find_images
from boneage_jax.data.label_table import (
    FILE_COLUMNS,
    SEX_COLUMNS,
    describe_codes,
    find_column,
    read_sex,
    read_table,
)
from boneage_jax.errors import InputError
from boneage_jax.inference.outputs import Outputs
from boneage_jax.inference.patients import Patients, patient_columns
from boneage_jax.inference.prediction_text import csv_cells, json_line, text_lines
from boneage_jax.runtime.progress import progress
from boneage_jax.storage.safe_write import check_replaces_nothing, in_one_piece

if TYPE_CHECKING:
    from boneage_jax.inference.predictor import Predictor

STDOUT = Path("-")  # as --output: standard output


_NOTHING = Outputs()


class Written(NamedTuple):
    """Numbers of files that were read, unlike the radiographs of training, unreadable; notes."""

    read: int
    unlike: int
    unreadable: int
    notes: Counter[str]


def check_arguments(
    paths: Sequence[str], output: Path | None, sex_csv: Path | None
) -> tuple[list[Path], dict[str, int], list[str]]:
    """Finds the image files and reads the sexes, before anything is compiled.

    Args:
      paths: see `boneage_jax.data.find_files.find_images`.
      output: CSV file to write, `STDOUT`, or None for none.
      sex_csv: see `read_sexes`.

    Returns:
      (image files, sex by `image_stem`, lines for the user on what is left out).

    Raises:
      InputError: no image, a table that is damaged or matches none of them, or an `output` that is
        not in an existing folder or would replace what is read.
    """
    left_out: Counter[str] = Counter()
    files = find_images(paths, left_out)
    lines = [f"left out {left_out.total()}: {describe_counts(left_out)}"] if left_out else []
    sexes, read_as = read_sexes(sex_csv) if sex_csv else ({}, "")
    if sex_csv:
        lines += [f"{sex_csv}: {read_as}"] if read_as else []
        lines += _match(sexes, files, sex_csv, read_as)
    if output is None or output == STDOUT:
        return files, sexes, lines
    if output.is_dir() or not output.absolute().parent.is_dir():
        raise InputError(f"--output={output} must name a CSV file in a folder that exists")
    if output.suffix.lower() in IMAGE_SUFFIXES:
        raise InputError(f"--output={output} names an input; name a CSV file to write")
    check_replaces_nothing(output, "--output", [*files, *([sex_csv] if sex_csv else [])])
    return files, sexes, lines


def read_sexes(path: Path) -> tuple[dict[str, int], str]:
    """Reads a table, CSV or XLSX, with an id and the sex of each image.

    Its columns may have any usual name, see `boneage_jax.data.label_table`. An id may be a file
    name or a path.

    Returns:
      (1 male, 0 female or -1 unknown by id, in the form of `image_stem`; how columns that could
      have been read otherwise were, "" if there are none).

    Raises:
      InputError: an unreadable file, a missing column, contradicting rows, or an invalid value.
    """
    table = read_table(path)
    key = find_column(table.header, FILE_COLUMNS)
    column = find_column([name for name in table.header if name != key], SEX_COLUMNS)
    if not (key and column and table.rows):
        found = ", ".join(map(repr, table.header)) or "nothing"
        raise InputError(f"--sex_csv={path} needs rows with the columns id,male; it has {found}")
    sexes: dict[str, int] = {}
    for line, cells in table.rows:
        name = image_stem(PurePath(cells[key].replace("\\", "/")))
        sex = read_sex(cells[column], column)
        if sex is None:
            raise InputError(
                f"{path} line {line}: {column}={cells[column]!r} must be M/F, True/False or 1/0"
            )
        if sexes.setdefault(name, sex) != sex:
            raise InputError(f"{path} line {line}: id {name!r} appears twice, with another sex")
    others = [name for name in table.header if name not in (key, column)]
    chosen = f"ids are those of column {key!r}" if find_column(others, FILE_COLUMNS) else ""
    return sexes, "; ".join(filter(None, [chosen, describe_codes(table, column)]))


def _match(sexes: Mapping[str, int], files: Sequence[Path], path: Path, read_as: str) -> list[str]:
    """Returns lines on ids and files that do not match one to one."""
    stems = Counter(image_stem(file) for file in files)
    if not stems.keys() & sexes.keys():
        how = f" ({read_as})" if read_as else ""
        raise InputError(f"--sex_csv={path}: no id matches the stem of a given file{how}")
    several = [stem for stem, count in stems.items() if count > 1 and stem in sexes]
    counts = {
        "files without an id": sum(count for stem, count in stems.items() if stem not in sexes),
        "ids without a file": len(sexes.keys() - stems.keys()),
        f"ids of several files each (e.g. {''.join(several[:1])!r})": len(several),
    }
    return [f"{path}: {number} {what}" for what, number in counts.items() if number]


def predict_files(
    predictor: "Predictor",
    files: Sequence[Path],
    sexes: Mapping[str, int],
    outputs: Outputs = _NOTHING,
) -> Iterator[dict[str, Any]]:
    """Yields one row per file, in order; threads decode ahead of the network.

    A row has `file`, the columns of the predictor as NumPy values, `error` and `note`. Columns
    without a value are absent. The sex of a file that `sexes` lacks is that of its DICOM header.
    Rows of DICOM files have the columns of `boneage_jax.inference.patients` too.
    """
    sex_matters = predictor.takes_sex or outputs.reference is not None
    patients = Patients(files, sexes, sex_matters=sex_matters)
    remaining = enumerate(files)
    features = outputs.features is not None or outputs.need_features
    for results, rows in predictor.batches(files, patients, features=features):
        numbers = iter(range(len(results)))
        for result in results:
            number, file = next(remaining)
            row: dict[str, Any] = {"file": os.fspath(file)}
            if isinstance(result, InputError):
                judged = {"accepted": False} if predictor.judges_images else {}
                yield row | judged | {"error": str(result)}
            else:
                at = next(numbers)
                read = {key: values[at] for key, values in rows.items()}
                own, note = outputs.add(file, read, result, patients.take(number))
                read.pop("features", None)
                yield row | read | {"note": note} | own


def write_predictions(
    predictor: "Predictor",
    files: Sequence[Path],
    sexes: Mapping[str, int],
    output: Path,
    outputs: Outputs = _NOTHING,
) -> Written:
    """Writes one CSV row per file and shows the progress.

    Args:
      predictor, files, sexes, outputs: see `predict_files`.
      output: the CSV file, or `STDOUT`.

    Raises:
      InputError: the file cannot be written; an existing one is left unchanged.
    """
    own = patient_columns(files, outputs.reference)
    columns = ("file", *predictor.columns, "error", "note", *own)
    try:
        with _opened(output) as file:
            writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
            writer.writeheader()
            rows = predict_files(predictor, files, sexes, outputs)
            found = _count(rows, lambda row: writer.writerow(csv_cells(row)), total=len(files))
        outputs.close()
        return found
    except BrokenPipeError:
        raise
    except OSError as error:
        raise InputError(f"--output={output} cannot be written: {error.strerror}") from error


def print_predictions(
    predictor: "Predictor",
    files: Sequence[Path],
    sexes: Mapping[str, int],
    outputs: Outputs = _NOTHING,
    *,
    as_json: bool = False,
) -> Written:
    """Prints each prediction to standard output as soon as it is known.

    Args:
      predictor, files, sexes, outputs: see `predict_files`.
      as_json: one JSON object per line, else some lines for a person.
    """
    own = patient_columns(files, outputs.reference)
    columns = ("file", *predictor.columns, "error", "note", *own)

    def show(row: Mapping[str, Any]) -> None:
        lines = [json_line(row, columns)] if as_json else text_lines(row, predictor.columns)
        tqdm.write("\n".join(lines), file=sys.stdout)  # above the bar
        sys.stdout.flush()

    rows = predict_files(predictor, files, sexes, outputs)
    found = _count(rows, show, total=len(files))
    outputs.close()
    return found


@contextlib.contextmanager
def _opened(output: Path) -> Iterator[TextIO]:
    if output == STDOUT:
        yield sys.stdout
        return
    with (
        in_one_piece(output) as part,
        part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        yield file


def _count(
    rows: Iterable[dict[str, Any]], write: Callable[[dict[str, Any]], Any], *, total: int
) -> Written:
    failed = rejected = 0
    notes: Counter[str] = Counter()
    for row in progress(rows, total=total, unit="image", disable=total == 1):
        write(row)
        failed += bool(row.get("error"))
        judged = csv_cells(row).get("accepted")
        rejected += judged == "False" and not row.get("error")
        notes.update(filter(None, row.get("note", "").split("; ")))
    return Written(total - failed, rejected, failed, notes)


def describe(predictor: "Predictor", written: Written, sexes: Mapping[str, int]) -> list[str]:
    """Returns lines for the user on written predictions."""
    judged = f"{written.unlike} of them unlike the training radiographs, "
    lines = [
        f"{written.read} of {written.read + written.unreadable} files read, "
        f"{judged if predictor.judges_images else ''}{written.unreadable} unreadable"
    ]
    if sexes and not predictor.takes_sex:
        lines.append("--sex_csv is of no effect: the sex is no input of this network")
    if written.notes:
        lines.append(f"notes: {describe_notes(written.notes)}")
    return [*lines, f"network: {predictor.name}"]

"""Reads the table of a radiograph folder: id, age, sex and split of each image."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from boneage_jax.data.counts import describe_counts
from boneage_jax.data.file_names import image_stem, relative_name
from boneage_jax.data.label_table import Table as Cells
from boneage_jax.data.label_table import (
    describe_codes,
    read_numbers,
    read_sex,
)
from boneage_jax.data.label_table import read_table as read_file
from boneage_jax.errors import InputError
from tfds_rsna.radiograph_folder.columns import MONTHS_PER, Columns, guess_columns, split_unit
from tfds_rsna.radiograph_folder.image_index import ImageIndex

# A DICOM age string such as 058Y (PS3.5, value representation AS) carries its own unit.
_DICOM_AGE = re.compile(r"(\d{3})([DWMY])")
_DICOM_UNITS = {"D": "days", "W": "weeks", "M": "months", "Y": "years"}
MAX_MONTHS = 1440.0  # 120 years, so that radiographs of adults are accepted too
# Where 95 % of the ages are at most this, they look like years.
_OLDEST_YEARS, _MOST = 20.0, 0.95

_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}

_SHOWN = 3  # names in a message


@dataclasses.dataclass(frozen=True)
class Radiograph:
    """One row: `key` is the path below the raw folder, `age` is in months, `male` 1, 0 or -1."""

    key: str
    path: Path
    id: str
    age: float
    male: int
    split: str
    line: int


class Labelled(NamedTuple):
    """Labelled images, the columns that were used, and lines for the user on what was left out."""

    rows: list[Radiograph]
    columns: Columns
    notes: list[str]


def read_table(
    path: Path, raw_dir: Path, asked: Columns, *, skip_missing: bool = False
) -> Labelled:
    """Reads and checks all rows of a table.

    Args:
      path: the table, see `boneage_jax.data.label_table.read_table`.
      raw_dir: folder of the images. A file name without folder is also searched for below it, and a
        name without suffix (an id) matches the stem of an image.
      asked: column names, where known.
      skip_missing: leave out rows whose image is missing instead of raising.

    Returns:
      Rows sorted by `key` without duplicates. Without an id column the id of a row is the stem of
      its file.

    Raises:
      InputError: unreadable table, missing column or file, a file outside `raw_dir`, an age that is
        not a number within 0 and 1440 months, ages that look like years where no unit is given, an
        unknown sex or split, or contradicting rows of one file or one id.
    """
    table = read_file(path)
    columns = guess_columns(table.header, asked, path)
    index = ImageIndex(raw_dir)
    codes = parse_sex_values(asked.sex_values)
    ages = _ages(table, columns, path)
    rows, missing = [], []
    for (number, cells), age in zip(table.rows, ages, strict=True):
        place = f"{path} line {number}"
        name = cells[columns.file]
        image = index.find(name, place)
        if image is None:
            missing.append(f"{name!r} (line {number})")
            continue
        rows.append(
            Radiograph(
                key=relative_name(image, raw_dir),
                path=image,
                id=(cells[columns.id] if columns.id else "") or image_stem(image),
                age=age,
                male=_sex(cells[columns.sex], columns.sex, codes, place) if columns.sex else -1,
                split=_split(cells[columns.split], place) if columns.split else "",
                line=number,
            )
        )
    if missing and not (skip_missing and rows):
        raise InputError(
            f"{path}: {len(missing)} of {len(table.rows)} images are not in {raw_dir}, first "
            f"{missing[0]} (there is e.g. {relative_name(index.images[0], raw_dir)!r}); correct "
            f"column {columns.file!r}, name another with the option file_column, or leave these "
            "rows out with skip_unreadable"
        )
    if not rows:
        raise InputError(f"{path} has a header but no row")
    if not (asked.age_unit or split_unit(columns.age)[1]):
        _refuse_years(table, columns.age, path)
    kept = _consistent(rows, path, by_person=bool(columns.id))
    notes = [
        _some(len(missing), "rows without an image are left out", missing),
        _some(len(rows) - len(kept), "repeated rows count once", []),
        _coded_sex(table, columns),
        _unused(table, columns),
        *_unnamed(index, {row.path for row in kept}, path, raw_dir),
    ]
    return Labelled(kept, columns, [note for note in notes if note])


class Label(NamedTuple):
    """One row: the cell that names the image, age in months, sex (1, 0, -1), line in the file."""

    image: str
    age: float
    male: int
    line: int


def read_labels(path: Path, asked: Columns) -> tuple[list[Label], Columns, list[str]]:
    """Reads the image, age and sex of each row, without searching the images.

    Args:
      path: the table, see `boneage_jax.data.label_table.read_table`.
      asked: column names, where known.

    Returns:
      (rows, the columns that were used, lines for the user).

    Raises:
      InputError: as `read_table`, but for what concerns images and splits.
    """
    table = read_file(path)
    columns = guess_columns(table.header, asked, path)
    codes = parse_sex_values(asked.sex_values)
    ages = _ages(table, columns, path)
    if not (asked.age_unit or split_unit(columns.age)[1]):
        _refuse_years(table, columns.age, path)
    rows = [
        Label(
            cells[columns.file],
            age,
            _sex(cells[columns.sex], columns.sex, codes, f"{path} line {number}")
            if columns.sex
            else -1,
            number,
        )
        for (number, cells), age in zip(table.rows, ages, strict=True)
    ]
    notes = [_coded_sex(table, columns), _unused(table, columns)]
    return rows, columns, [note for note in notes if note]


def parse_sex_values(text: str) -> dict[str, int]:
    """Parses `male=1,female=2|w`; returns 1 (male), 0 or -1 (unknown) by code in lower case.

    Raises:
      InputError: the text has another form, or a code has two meanings.
    """
    codes: dict[str, int] = {}
    for part in filter(None, text.split(",")):
        sex, equals, values = part.partition("=")
        meaning = {"male": 1, "female": 0, "unknown": -1}.get(sex.strip().lower())
        for value in values.casefold().split("|"):
            if meaning is None or not equals or codes.setdefault(value.strip(), meaning) != meaning:
                raise InputError(
                    f"sex_values is {text!r}; write it as male=1,female=2 (several: male=1|m)"
                )
    return codes


def _unnamed(index: ImageIndex, used: set[Path], table: Path, raw_dir: Path) -> list[str]:
    """Returns lines on the files below the raw folder that no row names."""
    unused = [path for path in index.images if path not in used]
    if unused:  # rows may name an image by the path of a link
        behind_links = {path.resolve() for path in used}
        unused = [path for path in unused if path.resolve() not in behind_links]
    others = [relative_name(path, raw_dir) for path in unused]
    left_out = index.left_out.copy()
    if table.is_relative_to(raw_dir):
        left_out["not images"] -= 1  # the table itself
    rest = describe_counts(+left_out)
    return [
        _some(len(others), "images without a row are left out", others),
        f"other files: {rest}" if rest else "",
    ]


def _coded_sex(table: Cells, columns: Columns) -> str:
    """Returns a line on what 1 and 0 were taken for, where neither column nor option tells."""
    read_as = "" if columns.sex_values or not columns.sex else describe_codes(table, columns.sex)
    return f"{read_as}; other codes: sex_values=male=CODE,female=CODE" if read_as else ""


def _unused(table: Cells, columns: Columns) -> str:
    used = {columns.file, columns.age, columns.sex, columns.split, columns.id}
    others = [name for name in table.header if name and name not in used]
    return f"columns not used: {', '.join(map(repr, others))}" if others else ""


def _some(number: int, what: str, names: Sequence[str]) -> str:
    if not number:
        return ""
    more = ", ..." if number > _SHOWN else ""
    shown = f": {', '.join(names[:_SHOWN])}{more}" if names else ""
    return f"{number} {what}{shown}"


def _ages(table: Cells, columns: Columns, path: Path) -> list[float]:
    """Returns the age of each row in months."""
    where = f"{path} column {columns.age!r}"
    cells = [row[columns.age] for _, row in table.rows]
    numbers = read_numbers(cells, where)
    own_unit = [_DICOM_AGE.fullmatch(cell.upper()) for cell in cells]
    months = [
        float(own[1]) * MONTHS_PER[_DICOM_UNITS[own[2]]]
        if own
        else number * MONTHS_PER[columns.age_unit]
        for number, own in zip(numbers, own_unit, strict=True)
    ]
    for (line, _), cell, age in zip(table.rows, cells, months, strict=True):
        place = f"{path} line {line}"
        if math.isnan(age):
            raise InputError(f"{place}: age {cell!r} is not a number; correct or remove the row")
        if not 0 <= age <= MAX_MONTHS:
            raise InputError(
                f"{place}: age {cell!r} is {age:g} months (unit {columns.age_unit}), outside 0 to "
                f"{MAX_MONTHS:g}; correct it or set age_unit"
            )
    return months


def _refuse_years(table: Cells, column: str, path: Path) -> None:
    """Refuses ages without a unit if most are those of children in years."""
    cells = [row[column] for _, row in table.rows]
    where = f"{path} column {column!r}"
    ages = [age for age in read_numbers(cells, where) if not math.isnan(age)]
    young = sum(age <= _OLDEST_YEARS for age in ages)
    if ages and young >= _MOST * len(ages):
        raise InputError(
            f"{where} holds ages of {min(ages):g} to {max(ages):g}, which look like years; give "
            "age_unit=years, or age_unit=months if they are months"
        )


def _sex(cell: str, column: str, codes: Mapping[str, int], place: str) -> int:
    sex = read_sex(cell, column, codes)
    if sex is None:
        usual = ", ".join(codes) if codes else "M, F, male, female, 1, 0, true, false"
        raise InputError(
            f"{place}: sex {cell!r} is not {usual} or blank; give the codes of the table with "
            "sex_values=male=CODE,female=CODE"
        )
    return sex


def _split(cell: str, place: str) -> str:
    name = _SPLITS.get(cell.strip().lower())
    if name is None:
        raise InputError(f"{place}: split {cell!r} is not train, validation or test")
    return name


def _consistent(rows: list[Radiograph], path: Path, *, by_person: bool) -> list[Radiograph]:
    """Drops duplicate rows; rejects rows that contradict each other or leak between splits."""

    def clash(kind: str, name: str, a: Radiograph, b: Radiograph, what: str, remedy: str) -> None:
        if getattr(a, what) != getattr(b, what):
            raise InputError(
                f"{path} lines {a.line} and {b.line}: {kind} {name!r} has {what} "
                f"{getattr(a, what)} and {getattr(b, what)}; {remedy}"
            )

    files: dict[str, Radiograph] = {}
    people: dict[str, Radiograph] = {}
    for row in rows:
        same = files.setdefault(row.key, row)
        if same.path != row.path and not same.path.samefile(row.path):
            raise InputError(f"{path}: two files have the name {row.key!r}; rename one of them")
        for what in ("id", "age", "male", "split"):
            clash("file", row.key, same, row, what, "keep the right row")
        # A person may be imaged at several ages; without an id column, equal stems must agree.
        first = people.setdefault(row.id, row)
        for what in ("male", "split") if by_person else ("age", "male", "split"):
            clash("id", row.id, first, row, what, "correct it or set id_column")
    return sorted(files.values(), key=lambda row: row.key)

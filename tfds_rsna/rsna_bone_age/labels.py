"""Label tables of the RSNA bone age data: which split a table belongs to, and its rows."""

import math
import sys
from pathlib import PurePath
from typing import NamedTuple

from boneage_jax.data.file_names import bare_name
from boneage_jax.data.label_table import (
    as_table,
    read_cells,
    read_number,
    read_numbers,
    read_sex,
)
from boneage_jax.errors import InputError

MAX_AGE = 240.0  # months; the oldest child of the data set has 228
_TEST_IDS = range(4360, 4560)
_OLDEST_YEARS, _MANY = 20, 20  # this number of ages, none of them above, look like years
_KNOWN_NAMES = (
    "train.csv",
    "boneage-training-dataset.csv",
    "validation dataset.csv",
    "boneage-test-dataset.csv",
    "bone age ground truth.xlsx",
)


class _Columns(NamedTuple):
    """The header of one split's table, in lower case; `age` is empty if the table has no ages."""

    split: str
    id: str
    age: str
    male: str


# The order matters: the last header is contained in the second.
_HEADERS = (
    _Columns("train", "id", "boneage", "male"),
    _Columns("test", "case id", "ground truth bone age (months)", "sex"),
    _Columns("validation", "image id", "bone age (months)", "male"),
    _Columns("test", "case id", "", "sex"),
)
EXPECTED = (
    "id,boneage,male (train); Image ID,male,Bone Age (months) (validation); "
    "Case ID,Sex,Ground truth bone age (months) (test)"
)


class Label(NamedTuple):
    """Age in months and sex (1 male, 0 female) of one radiograph; age is NaN if not published."""

    bone_age: float
    male: int


class Table(NamedTuple):
    """The labels of one split by id, and the name of the file they came from."""

    name: str
    split: str
    labels: dict[int, Label]

    @property
    def has_ages(self) -> bool:
        return not any(math.isnan(label.bone_age) for label in self.labels.values())


def read_table(data: bytes, name: str) -> Table | None:
    """Reads one CSV or XLSX file; its columns determine the split.

    Args:
      data: contents of the file.
      name: name of the file, for errors; its suffix determines the format.

    Returns:
      The table, or None if neither the name nor the columns are those of a label table.

    Raises:
      InputError: a file of a known name has wrong columns or no rows; an id is not an integer or is
        repeated; an age is outside 0..240 months; a sex is unknown; or it is the `test.csv` whose
        ages are not the published ones. The message names file and row.
    """
    known = is_known_name(name)
    try:
        rows = read_cells(data, name)
    except InputError:
        if known:
            raise
        return None
    header = [cell.lower() for cell in rows[0][1]] if rows else []
    columns = next((c for c in _HEADERS if {c.id, c.male} | {c.age or c.id} <= set(header)), None)
    if columns is None:
        if not known:
            return None
        found = f"the columns {','.join(rows[0][1])}" if rows else "nothing"
        raise InputError(f"{name}: expected the columns {EXPECTED}, found {found}")
    if len(rows) == 1:
        raise InputError(f"{name}: no rows below the header")
    labels: dict[int, Label] = {}
    body = as_table([(rows[0][0], header), *rows[1:]], name).rows
    texts = [row[columns.age] if columns.age else "" for _, row in body]
    ages = read_numbers(texts, f"{name} column {columns.age}")
    for (line, row), text, age in zip(body, texts, ages, strict=True):
        where = f"{name} row {line}"
        key = _id(row[columns.id], where, columns.id)
        if key in labels:
            raise InputError(f"{where}: id {key} appears twice; remove one of its rows")
        if columns.age and not 0 <= age <= MAX_AGE:
            raise InputError(f"{where}: {columns.age} {text!r} must be a number of 0-240 months")
        labels[key] = Label(age, _male(row[columns.male], where, columns.male))
    table = Table(name, columns.split, labels)
    _refuse_wrong_test(table)
    if table.has_ages and len(ages) >= _MANY and max(ages) <= _OLDEST_YEARS:
        raise InputError(
            f"{name}: no {columns.age} is above {_OLDEST_YEARS}, so these look like years; "
            "radiograph_folder reads such a table with age_unit=years (or months)"
        )
    return table


def _refuse_wrong_test(table: Table) -> None:
    ages = [label.bone_age for label in table.labels.values()]
    as_train = table.split == "train" and all(key in _TEST_IDS for key in table.labels)
    rounded = table.split == "test" and len(ages) == 200 and all(age % 1 == 0 for age in ages)
    if as_train or rounded:
        raise InputError(
            f"{table.name}: whole-month ages for the test ids 4360-4559 are not the published "
            "ground truth (2.8 months off on average, 26 at most); remove this file and take "
            "'Bone age ground truth.xlsx' from RSNA's Bone+Age+Test+Set.zip"
        )


def is_known_name(name: str) -> bool:
    """Returns whether a file, also in an archive, has the name of a published label table."""
    return name.replace("\\", "/").replace(":", "/").rsplit("/", 1)[-1].lower() in _KNOWN_NAMES


def _id(text: str, where: str, column: str) -> int:
    number = read_number(bare_name(PurePath(text)))
    if not (number >= 0 and number % 1 == 0):
        raise InputError(f"{where}: {column} {text!r} must be a whole number")
    return int(number)


def _male(text: str, where: str, column: str) -> int:
    sex = read_sex(text, column)
    if sex not in (0, 1):
        raise InputError(f"{where}: {column} {text!r} must be True/False, M/F or 1/0")
    return sex


def merge_tables(tables: list[Table]) -> dict[str, Table]:
    """Returns one table per split; equal copies count once, and tables with ages take precedence.

    Raises:
      InputError: two tables of one split differ.
    """
    merged: dict[str, Table] = {}
    for table in sorted(tables, key=lambda table: not table.has_ages):
        first = merged.setdefault(table.split, table)
        if table.has_ages and table.labels != first.labels:
            raise InputError(
                f"two different {table.split} tables: {first.name} and {table.name}; keep one"
            )
    for table in list(merged.values()):
        if not table.has_ages:
            del merged[table.split]
            print(
                f"rsna_bone_age: {table.name} has no ages, so the test split is left out; the "
                "ages are in RSNA's Bone+Age+Test+Set.zip",
                file=sys.stderr,
            )
    return merged


def is_test_id(key: int) -> bool:
    """Returns whether an id is one of the 200 published test radiographs."""
    return key in _TEST_IDS

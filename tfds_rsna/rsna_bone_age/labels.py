"""Label tables of the RSNA bone age data: which split a table belongs to, and its rows."""

import csv
import io
import math
import sys
import warnings
from typing import NamedTuple

import openpyxl

from boneage_jax.errors import InputError

MAX_AGE = 240.0  # months; the oldest child of the data set has 228
_TEST_IDS = range(4360, 4560)
_SEXES = {"true": 1, "t": 1, "1": 1, "m": 1, "male": 1, "false": 0, "f": 0, "0": 0, "female": 0}
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
    rows = _read_xlsx(data, name) if name.lower().endswith(".xlsx") else _read_csv(data, name)
    known = name.replace("\\", "/").replace(":", "/").rsplit("/", 1)[-1].lower() in _KNOWN_NAMES
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
    for line, cells in rows[1:]:
        row = dict(zip(header, cells + [""] * (len(header) - len(cells)), strict=False))
        where = f"{name} row {line}"
        key = _id(row[columns.id], where, columns.id)
        if key in labels:
            raise InputError(f"{where}: id {key} appears twice; remove one of its rows")
        age = _age(row[columns.age], where, columns.age) if columns.age else math.nan
        labels[key] = Label(age, _male(row[columns.male], where, columns.male))
    table = Table(name, columns.split, labels)
    _refuse_wrong_test(table)
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


def _read_csv(data: bytes, name: str) -> list[tuple[int, list[str]]]:
    """Returns the non-blank rows with their line numbers."""
    try:
        reader = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""))
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{name}: not a readable CSV file: {error}") from error
    return [(line, row) for line, row in rows if any(row)]


def _read_xlsx(data: bytes, name: str) -> list[tuple[int, list[str]]]:
    """Returns the non-blank rows of the first sheet with their row numbers."""
    try:
        with warnings.catch_warnings():  # openpyxl warns about styles it does not keep
            warnings.simplefilter("ignore")
            book = openpyxl.load_workbook(io.BytesIO(data), data_only=True)
            sheet = book.worksheets[0]
            rows = [
                (line, ["" if cell is None else str(cell).strip() for cell in row])
                for line, row in enumerate(sheet.iter_rows(values_only=True), start=1)
            ]
    except Exception as error:  # openpyxl raises many types on damaged files
        raise InputError(f"{name}: not a readable XLSX file: {error}") from error
    return [(line, row) for line, row in rows if any(row)]


def _id(text: str, where: str, column: str) -> int:
    number = _number(text.lower().removesuffix(".png"))
    if number is None or number < 0 or number % 1:
        raise InputError(f"{where}: {column} {text!r} must be a whole number")
    return int(number)


def _age(text: str, where: str, column: str) -> float:
    age = _number(text)
    if age is None or not 0 <= age <= MAX_AGE:
        raise InputError(f"{where}: {column} {text!r} must be a number of 0-240 months")
    return age


def _male(text: str, where: str, column: str) -> int:
    sex = text.lower().removesuffix(".0")
    if sex not in _SEXES:
        raise InputError(f"{where}: {column} {text!r} must be True/False, M/F or 1/0")
    return _SEXES[sex]


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


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

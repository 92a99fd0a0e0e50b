"""Reads label tables, CSV or XLSX, as programs and spreadsheets of any language write them."""

import codecs
import csv
import io
import math
import re
import unicodedata
import warnings
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from boneage_jax.data.file_names import decode_windows
from boneage_jax.errors import InputError

TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".xlsx")
MAX_BYTES = 50_000_000
_MAX_UNPACKED = 500_000_000  # bytes of all parts of an XLSX file
_DELIMITERS = ",;\t|"
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins like the next
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_QUOTED = re.compile(r'"[^"]*"')
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f]")
_SEPARATOR_LINE = re.compile(r"sep=(.)\r?\n?", re.IGNORECASE)  # of Excel, before the header
_EXCEL_TEXT = re.compile(r'="(.*)"')  # keeps leading zeros from Excel
_NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)(e[+-]?\d+)?", re.IGNORECASE)
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+")

# Names of columns in the form of `plain_name`; the first that a table has is taken.
FILE_COLUMNS = (
    "file", "filename", "filepath", "path", "image", "imagefile", "imagefilename", "imagename",
    "imagepath", "imageindex", "imageid", "caseid", "case", "id",
)  # fmt: skip
SEX_COLUMNS = (
    "sex", "gender", "male", "ismale", "patientsex", "patientgender", "female", "isfemale", "mf",
)  # fmt: skip
# Booleans of Excel in German, French, Spanish and Italian too.
_YES = {"1", "true", "yes", "wahr", "vrai", "verdadero", "vero"}
_NO = {"0", "false", "no", "falsch", "faux", "falso"}
_MALE = {"m", "male", "boy", "man", "männlich"}
_FEMALE = {"f", "female", "girl", "woman", "w", "weiblich"}
_UNKNOWN = {"", "-1", "?", "-", "u", "o", "unknown", "other", "na", "n/a", "#n/a", "nan", "none"}
_UNKNOWN |= {"null"}

Row = tuple[int, list[str]]


class Table(NamedTuple):
    """A table: the names of its columns, and (line number, cells by column) of each row."""

    header: tuple[str, ...]
    rows: list[tuple[int, dict[str, str]]]


def read_table(path: Path) -> Table:
    """Reads a table whose rows have a cell for each column of the header.

    Raises:
      InputError: the file is missing, empty or too large; or see `read_cells` and `as_table`.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path}: {path.stat().st_size} bytes are too many for a label table")
        rows = read_cells(path.read_bytes(), str(path))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if not rows:
        raise InputError(f"{path} is empty: it has no column; a label table has a header and rows")
    return as_table(rows, str(path))


def as_table(rows: Sequence[Row], name: str) -> Table:
    """Names the cells of rows, the first of which is the header.

    Args:
      rows: see `read_cells`.
      name: name of the file in error messages.

    Raises:
      InputError: two columns of one name, a row of fewer cells than the header, or one with
        something beyond its last column.
    """
    header = rows[0][1] if rows else []
    while header and not header[-1]:
        header = header[:-1]
    doubled = sorted({column for column in header if column and header.count(column) > 1})
    if doubled:
        raise InputError(f"{name} has two columns called {doubled[0]!r}; rename one")
    for line, cells in rows[1:]:
        if len(cells) < len(header) or any(cells[len(header) :]):
            raise InputError(
                f"{name} line {line} has {len(cells)} cells, its header {len(header)}; text with a "
                "separator or a comma in it needs quotes"
            )
    named = [(line, dict(zip(header, cells, strict=False))) for line, cells in rows[1:]]
    return Table(tuple(header), named)


def read_cells(data: bytes, name: str) -> list[Row]:
    """Reads the cells of a CSV or XLSX file; its content tells which it is.

    A CSV may be in UTF-8, in UTF-16 or UTF-32 with a byte order mark (UTF-16 also without), or in
    Windows-1252, and separated by commas, semicolons, tabs or bars.

    Args:
      data: content of the file.
      name: name in error messages.

    Returns:
      (line number, cells without surrounding blanks) for each row that is not blank; of an XLSX
      file those of the first sheet that has any.

    Raises:
      InputError: neither CSV nor XLSX, damaged, or a workbook of several sheets with the columns of
        the first.
    """
    if data.startswith(b"PK\x03\x04"):
        rows = _xlsx_rows(data, name)
    elif data.startswith(b"\xd0\xcf\x11\xe0"):
        raise InputError(f"{name}: the old Excel format is not read; save it as .xlsx or CSV")
    else:
        rows = _csv_rows(data, name)
    return [(line, cells) for line, cells in rows if any(cells)]


def plain_name(name: str) -> str:
    """Returns the name of a column in lower case, letters and digits only."""
    return re.sub(r"[\W_]", "", unicodedata.normalize("NFC", name).casefold())


def find_column(header: Iterable[str], names: Iterable[str]) -> str:
    """Returns the first column of a header with one of these plain names, "" for none."""
    known = {plain_name(column): column for column in reversed([*header])}
    return next((known[name] for name in names if name in known), "")


def read_sex(cell: str, column: str, values: Mapping[str, int] | None = None) -> int | None:
    """Reads a cell with the sex.

    Args:
      cell: M, F, male, female, 1, 0, true, false or similar; blank for unknown.
      column: name of its column; in one called `female`, yes means female.
      values: the codes that this table has, in lower case, instead of the usual ones.

    Returns:
      1 male, 0 female, -1 unknown, None if the cell cannot be read.
    """
    text = cell.strip().casefold()
    if values and text in values:
        return values[text]
    if text in _UNKNOWN:
        return -1
    if values:
        return None
    if text in _MALE or text in _FEMALE:
        return int(text in _MALE)
    inverted = "female" in plain_name(column)
    text = text.removesuffix(".0").removesuffix(",0")
    if text in _YES or text in _NO:
        return int((text in _YES) != inverted)
    return 1 if text == "t" and not inverted else None


def describe_codes(table: Table, column: str) -> str:
    """Returns a line on what 1 and 0 in a column of sexes are read as; "" if its name tells."""
    if "male" in plain_name(column):
        return ""
    if not any(cells[column][:1] in ("0", "1") for _, cells in table.rows):
        return ""
    return f"column {column!r}: 1 is read as male, 0 as female"


def read_numbers(cells: Sequence[str], where: str) -> list[float]:
    """Reads a column of numbers, with points or commas before the decimals.

    Returns:
      One number per cell, NaN for a cell that is none.

    Raises:
      InputError: commas that may separate thousands or decimals; `where` names the column.
    """
    commas = [cell for cell in cells if "," in cell and _NUMBER.fullmatch(cell.strip())]
    if commas and all(_THOUSANDS.fullmatch(cell.strip()) for cell in commas):
        raise InputError(
            f"{where}: {commas[0]!r} may mean thousands or decimals; write it without the comma, "
            "or with a point"
        )
    return [read_number(cell.replace(",", ".")) for cell in cells]


def read_number(cell: str) -> float:
    """Returns the number in a cell, NaN if there is none or it is not finite."""
    text = cell.strip()
    number = float(text) if _NUMBER.fullmatch(text) and "," not in text else math.nan
    return number if math.isfinite(number) else math.nan


def _csv_rows(data: bytes, name: str) -> list[Row]:
    try:
        text = _decode(data)
        if _CONTROL.search(text):
            raise ValueError("it is not text")
        skipped = 0
        if sep := _SEPARATOR_LINE.match(text):
            delimiter, text, skipped = sep[1], text[sep.end() :], 1
        else:
            first = next((t for t in _QUOTED.sub("", text).splitlines() if t.strip()), "")
            delimiter = max(_DELIMITERS, key=first.count)
        lines = io.StringIO(text, newline="")
        reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
        return [(reader.line_num + skipped, [_cell(cell) for cell in row]) for row in reader]
    except (ValueError, csv.Error, TypeError) as error:
        raise InputError(f"{name}: not a readable CSV file: {error}") from error


def _decode(data: bytes) -> str:
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            return data.decode(encoding)
    head = data[:1000]
    if head.count(0) > len(head) // 3:  # UTF-16 without its mark
        return data.decode("utf-16-le" if head[1:2] == b"\0" else "utf-16-be")
    try:
        return data.decode()
    except UnicodeDecodeError:
        return decode_windows(data)


def _cell(text: str) -> str:
    text = text.strip(" \t\r\n\v\f\u00a0\u200b\ufeff")
    match = _EXCEL_TEXT.fullmatch(text)
    return match[1] if match else text


def _xlsx_rows(data: bytes, name: str) -> list[Row]:
    import openpyxl  # takes 0.2 s

    try:
        with zipfile.ZipFile(io.BytesIO(data)) as parts:
            size = sum(part.file_size for part in parts.infolist())
        if size > _MAX_UNPACKED:
            raise ValueError(f"{size} bytes unpacked are too many")
        with warnings.catch_warnings():  # openpyxl warns about styles it does not keep
            warnings.simplefilter("ignore")
            book = openpyxl.load_workbook(io.BytesIO(data), data_only=True)
        sheets = {sheet.title: _sheet_rows(sheet) for sheet in book.worksheets}
    except Exception as error:  # openpyxl raises many types on damaged files
        raise InputError(f"{name}: not a readable XLSX file: {error}") from error
    first, *others = [title for title, rows in sheets.items() if rows] or [""]
    for other in others:
        if sheets[other][0][1] == sheets[first][0][1]:
            raise InputError(
                f"{name}: the sheets {first!r} and {other!r} have the same columns; keep one, or "
                "copy their rows into one"
            )
    return sheets.get(first, [])


def _sheet_rows(sheet: Any) -> list[Row]:
    """Returns the rows of a sheet of openpyxl that hold something."""
    values = enumerate(sheet.iter_rows(values_only=True), 1)
    rows = [(line, [_text(cell) for cell in row]) for line, row in values]
    return [(line, cells) for line, cells in rows if any(cells)]


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return _cell(str(value))

"""Label tables as programs write them, against what a person reads in them."""

import io
import math

import openpyxl
import pytest

from boneage_jax.data.label_table import (
    SEX_COLUMNS,
    find_column,
    plain_name,
    read_cells,
    read_numbers,
    read_sex,
    read_table,
)
from boneage_jax.errors import InputError

CELLS = [["id", "boneage", "Größe"], ["a", "50.5", "ü"], ["b", "60", "ß"]]


def text(delimiter: str = ",", end: str = "\n", rows=CELLS) -> str:
    return "".join(delimiter.join(cells) + end for cells in rows)


def workbook(*sheets) -> bytes:
    book = openpyxl.Workbook()
    for number, rows in enumerate(sheets):
        sheet = book.create_sheet(index=number)
        for cells in rows:
            sheet.append(cells)
    file = io.BytesIO()
    book.save(file)
    return file.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        text().encode(),
        text().encode("utf-8-sig"),
        text().encode("utf-16"),
        text().encode("utf-16-be"),
        text().encode("utf-32"),
        text().encode("latin-1"),
        text(";", "\r\n").encode("cp1252"),
        text("\t", "\r").encode(),
        text("|").encode(),
        ("sep=;\n" + text(";")).encode(),
        ("\n\n" + text("\t")).encode("utf-16"),
        text(rows=[[f'"{cell}"' for cell in cells] for cells in CELLS]).encode(),
        text(", ", rows=[[f'"{cell}"' for cell in cells] for cells in CELLS]).encode(),
        text(rows=[CELLS[0], ['="a"', " 50.5\u00a0", "ü"], CELLS[2]]).encode(),
        workbook([], [["id", "boneage", "Größe"], ["a", 50.5, "ü"], [], ["b", 60.0, "ß"]]),
    ],
)
def test_any_program_writes_the_same_table(data):
    assert [cells for _, cells in read_cells(data, "labels.csv")] == CELLS


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x89PNG\r\n\x1a\n\0\0", "not text"),
        (b"\xff\xfe\0", "not a readable CSV"),
        (b'id\n"a\n', "not a readable CSV"),
        (b"PK\3\4", "not a readable XLSX"),
        (b"\xd0\xcf\x11\xe0" + b"\0" * 512, "old Excel format is not read; save it as"),
        (workbook(CELLS, [["note"]], [CELLS[0], ["c", "1", ""]]), "'Sheet1' and 'Sheet3' have"),
    ],
)
def test_what_is_no_table_is_named(data, message):
    with pytest.raises(InputError, match=rf"labels\.csv: .*{message}"):
        read_cells(data, "labels.csv")


@pytest.mark.parametrize("data", [b"", b"\n\n", b"\xef\xbb\xbf", b",,\n"])
def test_an_empty_table_is_named(tmp_path, data):
    (tmp_path / "labels.csv").write_bytes(data)
    with pytest.raises(InputError, match=r"labels\.csv is empty: it has no column; "):
        read_table(tmp_path / "labels.csv")


def test_rows_have_the_length_of_the_header(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("id;boneage;\na;50;\nb;60;;\n")
    table = read_table(path)
    assert table.header == ("id", "boneage")
    assert table.rows == [
        (2, {"id": "a", "boneage": "50"}),
        (3, {"id": "b", "boneage": "60"}),
    ]
    path.write_text("id,boneage\na,50,5\n")
    with pytest.raises(InputError, match=r"x\.csv line 2 has 3 cells, its header 2"):
        read_table(path)
    with pytest.raises(InputError, match=r"no\.csv cannot be read: No such file"):
        read_table(tmp_path / "no.csv")


def test_columns_are_found_by_usual_names():
    assert plain_name("Bone Age (months)") == "boneagemonths"
    assert plain_name("Größe") != plain_name("Alter") != ""
    assert find_column(["ID", "Patient Gender"], SEX_COLUMNS) == "Patient Gender"
    assert find_column(["id", "M/F"], SEX_COLUMNS) == "M/F"
    assert find_column(["a", "b"], SEX_COLUMNS) == ""


@pytest.mark.parametrize(
    ("cell", "column", "sex"),
    [
        *(("M", "sex", 1), ("female", "sex", 0), ("W", "Gender", 0), ("", "sex", -1)),
        *(("1", "male", 1), ("0.0", "male", 0), ("1,0", "male", 1), ("True", "male", 1)),
        *(("WAHR", "male", 1), ("FALSCH", "male", 0), ("faux", "male", 0), ("t", "male", 1)),
        *(("1", "Female", 0), ("no", "is_female", 1), ("F", "female", 0), ("m", "female", 1)),
        *(("#N/A", "sex", -1), ("2", "sex", None), ("X", "sex", None), ("t", "female", None)),
    ],
)
def test_sexes(cell, column, sex):
    assert read_sex(cell, column) == sex


def test_own_codes_of_the_sex_take_the_place_of_the_usual_ones():
    codes = {"1": 1, "2": 0, "m": 0}
    found = [read_sex(c, "sex", codes) for c in ("1", "2", "M", "", "0")]
    assert found == [1, 0, 0, -1, None]


@pytest.mark.parametrize(
    ("cells", "numbers"),
    [
        (["12", "1.5", ".5", "1e2"], [12, 1.5, 0.5, 100]),
        (["12,5", "1,25", "7"], [12.5, 1.25, 7]),
        (["12,5", "1,234"], [12.5, 1.234]),  # the first tells what the commas of the second are
        (["", "ten", "1_0", "inf", "nan", "058Y", "1.2.3"], [math.nan] * 7),
    ],
)
def test_numbers(cells, numbers):
    assert read_numbers(cells, "column") == pytest.approx(numbers, nan_ok=True)


def test_thousands_are_no_decimals():
    with pytest.raises(InputError, match="days: '1,234' may mean thousands or decimals"):
        read_numbers(["1,234", "600"], "days")

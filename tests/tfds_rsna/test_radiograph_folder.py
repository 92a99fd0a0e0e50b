"""The builder for any CSV with images: columns, units, splits, and what it refuses."""

import os
import unicodedata
from pathlib import Path

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from boneage_jax.data.files import fit_square
from boneage_jax.data.notes import FLAT, SMALL
from boneage_jax.errors import InputError
from tfds_rsna.builders import prepare
from tfds_rsna.radiograph_folder.columns import Columns, find_table, guess_columns
from tfds_rsna.radiograph_folder.radiograph_folder_dataset_builder import Builder
from tfds_rsna.radiograph_folder.table import read_table


def _image(index: int) -> np.ndarray:
    """Noise of a size of its own, so that a swapped image is noticed."""
    rng = np.random.default_rng(index)
    return rng.integers(0, 256, (70 + index, 90 - index % 3)).astype(np.uint8)


def _folder(root: Path, text: str, stems=("a", "b", "c"), below: str = "images") -> Path:
    (root / below).mkdir(parents=True, exist_ok=True)
    for index, stem in enumerate(stems):
        assert cv2.imwrite(str(root / below / f"{stem}.png"), _image(index))
    (root / "labels.csv").write_text(text, encoding="utf-8")
    return root


def _read(root: Path, **asked: str):
    columns = Columns(**asked)
    return read_table(find_table(root, "", columns)[0], root, columns)


def _prepare(root: Path, data_dir: Path, config: str = "64", **options):
    name = f"radiograph_folder/{config}"
    builder = tfds.builder(name, data_dir=data_dir, raw_dir=root, **options)
    builder.download_and_prepare()
    return {name: list(builder.as_data_source(split=name)) for name in builder.info.splits}, builder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    stems = [f"case{i:02d}" for i in range(30)]
    lines = [f"{s}.png,{3 + i * 0.5},{'MF'[i % 2]}" for i, s in enumerate(stems)]
    text = "File,Age_Years,Sex\n" + "\n".join(lines) + "\n"
    return _folder(tmp_path_factory.mktemp("raw"), text, stems)


@pytest.fixture(scope="module")
def prepared(folder, tmp_path_factory):
    return _prepare(folder, tmp_path_factory.mktemp("data"))


def test_records_hold_the_fitted_images_and_labels(prepared):
    records = {r["id"].decode(): r for part in prepared[0].values() for r in part}
    assert len(records) == 30
    for index in range(30):
        record = records[f"case{index:02d}"]
        image = _image(index)
        np.testing.assert_array_equal(record["image"][..., 0], fit_square(image, 64))
        assert record["image"].dtype == np.uint8 and record["image"].shape == (64, 64, 1)
        assert (record["height"], record["width"]) == image.shape
        assert record["bone_age"] == pytest.approx((3 + index * 0.5) * 12)
        assert record["male"] == (index + 1) % 2


def test_default_splits_are_seeded_eighty_ten_ten(folder, prepared, tmp_path):
    sizes = {name: len(part) for name, part in prepared[0].items()}
    assert sizes == {"train": 24, "validation": 3, "test": 3}
    again = _prepare(folder, tmp_path, "96", fractions="train=0.8,validation=0.1,test=0.1")[0]
    other = _prepare(folder, tmp_path, "128", seed="5")[0]

    def ids(parts):
        return {name: {r["id"] for r in part} for name, part in parts.items()}

    assert ids(again) == ids(prepared[0]) != ids(other)


def test_metadata_of_the_builder_is_valid(prepared):
    builder = prepared[1]
    assert "age in months" in builder.info.description
    assert set(builder.get_metadata().tags) <= set(tfds.core.dataset_metadata.valid_tags())
    assert set(Builder.builder_configs) >= {"256", "384", "512", "640", "original"}


def test_original_keeps_each_image(folder, tmp_path):
    parts, _ = _prepare(folder, tmp_path, "original")
    for record in parts["test"]:
        index = int(record["id"].decode()[-2:])
        np.testing.assert_array_equal(record["image"][..., 0], _image(index))


def test_split_column_is_followed(tmp_path):
    text = "file;boneage;male;split\na;10;1;Training\nb;20;;val\nc;30;False;test\n"
    root = _folder(tmp_path / "raw", text)
    parts, _ = _prepare(root, tmp_path / "data")
    got = {name: [(r["bone_age"], r["male"]) for r in part] for name, part in parts.items()}
    assert got == {"train": [(10, 1)], "validation": [(20, -1)], "test": [(30, 0)]}


def test_skip_unreadable(tmp_path):
    root = _folder(tmp_path / "raw", "id,boneage\na,10\nb,20\nc,30\n")
    (root / "images" / "b.png").write_bytes(b"no image")
    whole = {"train": 1.0}
    with pytest.raises(InputError, match=r"b\.png"):
        _prepare(root, tmp_path / "one", fractions=whole)
    parts, _ = _prepare(root, tmp_path / "two", fractions=whole, skip_unreadable=True)
    assert sorted(r["id"] for r in parts["train"]) == [b"a", b"c"]


def test_notes_on_reading_are_kept_beside_the_records(tmp_path, capsys):
    root = _folder(tmp_path / "raw", "id,boneage\na,50\nb,60\nc,70\n")
    for stem, image in (("a", np.zeros((9, 9))), ("b", np.eye(200)), ("c", np.ones((9, 9)))):
        cv2.imwrite(str(root / "images" / f"{stem}.png"), image)
    _, builder = _prepare(root, tmp_path / "data", fractions={"train": 1.0})
    lines = (Path(builder.data_path) / "notes.csv").read_text().splitlines()
    assert lines[0] == "file,note" and len(lines) == 3
    assert lines[1] == f"{root / 'images' / 'a.png'},{FLAT}; {SMALL}"
    assert f"{FLAT} (2 files); {SMALL} (2 files); see" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("file,age,sex", Columns("file", "age", "sex", "", "", "months")),
        ("id,boneage,male", Columns("id", "boneage", "male", "", "", "months")),
        ("Path,Gender,Age_Days,Split", Columns("Path", "Age_Days", "Gender", "Split", "", "days")),
        (
            "Image Index,Patient ID,Age in Years,Patient Sex,Bone Age (months)",
            Columns("Image Index", "Bone Age (months)", "Patient Sex", "", "Patient ID", "months"),
        ),
        ("filename,id,Age (years)", Columns("filename", "Age (years)", "", "", "id", "years")),
    ],
)
def test_columns_are_guessed(header, expected):
    assert guess_columns(header.split(","), Columns(), Path("x.csv")) == expected


def test_units_and_codes(tmp_path):
    days = tmp_path / "days"
    rows = _read(_folder(days, "image,age_days,sex\na,365.25,male\nb,0,F\nc,730.5,unknown\n")).rows
    assert [round(row.age, 6) for row in rows] == [12, 0, 24]
    assert [row.male for row in rows] == [1, 0, -1]
    # DICOM age strings carry their unit, whatever the column says.
    root = _folder(tmp_path / "as", "file,age,female\na,058Y,1\nb,006M,0\nc,52,f\n")
    rows = _read(root, sex="female").rows
    assert [row.age for row in rows] == [696, 6, 52]
    assert [row.male for row in rows] == [0, 1, 0]
    asked = {"age": "b", "age_unit": "years", "file": "a"}
    rows = _read(_folder(tmp_path / "asked", "a,b\na,2\nb,3\nc,4\n"), **asked).rows
    assert [row.age for row in rows] == [24, 36, 48]


def test_images_of_one_person_stay_together(tmp_path):
    stems = [f"i{n:02d}" for n in range(40)]
    lines = [f"images/{s}.png,p{n % 10},{n}" for n, s in enumerate(stems)]
    root = _folder(tmp_path / "raw", "file,patient_id,age\n" + "\n".join(lines), stems)
    parts, _ = _prepare(root, tmp_path / "data")
    people = [{r["id"] for r in part} for part in parts.values()]
    assert [len(p) for p in people] == [8, 1, 1]
    assert len(set().union(*people)) == 10


def test_identical_rows_count_once(tmp_path):
    rows = _read(_folder(tmp_path, "file,age\na.png,50\nb.png,60\na.png,50\n")).rows
    assert [row.id for row in rows] == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,sex\na.png,M\n", r"no recognisable age column; it has 'file', 'sex'"),
        ("age,sex\n5,M\n", "no recognisable file column"),
        ("file,age\n", "no row"),
        ("", "no column"),
        ("file,age\na.png,\n", "line 2: age '' is not a number"),
        ("file,age\na.png,NaN\n", "'NaN' is not a number"),
        ("file,age\na.png,ten\n", "'ten'"),
        ("file,age\na.png,-1\n", "outside 0 to 1440"),
        ("file,age_years\na.png,121\n", "1452 months"),
        ("file,age,sex\na.png,5,X\n", "sex 'X'"),
        ("file,age,split\na.png,5,holdout\n", "split 'holdout'"),
        ("file,age\na.png,5\nz.png,6\nb.png,7\n", r"1 of 3 images .* 'z.png' \(line 3\)"),
        ("file,age\n../labels.csv,5\n", "leaves raw_dir"),
        ("file,age\n/etc/passwd,5\n", "leaves raw_dir"),
        ("file,age\nC:\\x.png,5\n", "leaves raw_dir"),
        ("file,age\n..\\x.png,5\n", "leaves raw_dir"),
        ("file,age\n,5\n", "names no image"),
        (
            "file,age\na.png,50\na.png,60\n",
            "lines 2 and 3: file 'images/a.png' has age 50.0 and 60",
        ),
        ("file,id,age,sex\na,p,50,M\nb,p,60,F\n", "id 'p' has male 1 and 0"),
        ("file,id,age,split\na,p,50,train\nb,p,60,test\n", "id 'p' has split train and test"),
        ("file,age\na.png,5\nb.png,18\n", "ages of 5 to 18, which look like years; give age_unit="),
        ("file,age\na.png,5,9\n", "line 2 has 3 cells, its header 2"),
        ("file,age,age\na.png,5,5\n", "two columns called 'age'"),
        ('file,age\n"a.png,5\n', "not a readable CSV"),
    ],
)
def test_bad_tables_are_refused_in_one_line(tmp_path, text, message):
    root = _folder(tmp_path, text)
    with pytest.raises(InputError, match=message) as caught:
        _read(root)
    assert "\n" not in str(caught.value)


def test_bad_options_are_refused(tmp_path):
    root = _folder(tmp_path / "raw", "file,age\na.png,5\n")
    with pytest.raises(InputError, match="no column 'years'; it has 'file', 'age'"):
        _read(root, age="years")
    with pytest.raises(InputError, match="age_column=years reads 'years' in that unit; age_unit"):
        _read(_folder(tmp_path / "years", "file,years\na.png,5\n"))
    with pytest.raises(InputError, match="age_unit is 'decades'"):
        _read(root, age_unit="decades")
    with pytest.raises(InputError, match="fractions is 'half'"):
        Builder(config="64", data_dir=tmp_path, fractions="half")
    with pytest.raises(InputError, match="seed is 'x'"):
        Builder(config="64", data_dir=tmp_path, seed="x")
    with pytest.raises(InputError, match="raw_dir"):
        Builder(config="64", data_dir=tmp_path).download_and_prepare()
    for wrong in (
        {"seed": 1.5},
        {"seed": True},
        {"csv": 5},
        {"csv": {"a": 1}},
        {"fractions": 5},
        {"fractions": {"train": "half"}},
    ):
        with pytest.raises(InputError, match=f"{next(iter(wrong))}.* (must be|is 5; write)"):
            prepare("radiograph_folder/64", root, tmp_path / "data", **wrong)
    for place in ({"raw_dir": 5}, {"raw_dir": b"x"}, {"raw_dir": root, "data_dir": 5}):
        with pytest.raises(InputError, match=r"_dir=.* must be a text or a pathlib\.Path"):
            prepare("radiograph_folder/64", **place)
    with pytest.raises(InputError, match="does not exist"):
        find_table(root, "other.csv", Columns())
    (root / "more.csv").write_text("file,age\nb.png,60\n")
    with pytest.raises(InputError, match=r"found labels.csv, more.csv"):
        find_table(root, "", Columns())
    with pytest.raises(InputError, match="not a folder"):
        find_table(root / "nowhere", "", Columns())


def _rows(root: Path, cells, names, folder: str = "") -> dict[str, tuple[str, float]]:
    """The ages by key of images called `names`, whose rows are `cells`, of 50, 60 ... months."""
    (root / folder).mkdir(parents=True, exist_ok=True)
    for name in names:
        (root / folder / name).write_bytes(cv2.imencode(".png", _image(0))[1].tobytes())
    lines = [f"{cell},{50 + 10 * n}" for n, cell in enumerate(cells)]
    (root / "labels.csv").write_text("file,age\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return {row.key: (row.id, row.age) for row in _read(root).rows}


def test_names_are_matched_as_a_person_reads_them(tmp_path):
    uid = "1.2.826.0.1.3680043.9.7433.{}"  # DICOM names have no suffix
    uids = [uid.format(n) for n in (1000, 1001)]
    assert _rows(tmp_path / "uid", uids, uids) == {uids[0]: (uids[0], 50), uids[1]: (uids[1], 60)}
    mac = unicodedata.normalize("NFD", "Händ.png")
    assert _rows(tmp_path / "mac", ["Händ.png"], [mac]) == {"Händ.png": ("Händ", 50)}
    latin = os.fsdecode("Händ.png".encode("latin-1"))
    found = _rows(tmp_path / "old", ["Händ"], [latin], os.fsdecode(b"R\x81ntgen"))
    assert found == {"R\x81ntgen/Händ.png": ("Händ", 50)}
    found = _rows(
        tmp_path / "case", ["a.PNG", "sub\\b", "./sub/c.Png"], ["a.png", "b.png", "c.png"], "sub"
    )
    assert [*found] == ["sub/a.png", "sub/b.png", "sub/c.png"]
    assert [*_rows(tmp_path / "dos", ["HAND.PNG", "Other"], ["Hand.png", "other.png"])] == [
        "Hand.png",
        "other.png",
    ]
    two = ["hand.png", "Hand.png"]
    assert _rows(tmp_path / "two", two, two) == {"hand.png": ("hand", 50), "Hand.png": ("Hand", 60)}
    assert _rows(tmp_path / "two", ["hand"], []) == {"hand.png": ("hand", 50)}
    with pytest.raises(InputError, match=r"'HAND' may be Hand\.png and hand\.png"):
        _rows(tmp_path / "two", ["HAND"], [])


def test_images_behind_links_are_found(tmp_path):
    raw = _folder(tmp_path / "raw", "file,age\na.png,50\nmore/b.png,60\nc,70\n", ("a",))
    other = _folder(tmp_path / "disk", "", ("b", "c"), below="images") / "images"
    (raw / "more").symlink_to(other)
    (other / "back").symlink_to(raw)  # a loop
    assert [row.key for row in _read(raw).rows] == ["images/a.png", "more/b.png", "more/c.png"]


def test_what_is_left_out_is_said(tmp_path):
    text = "file,age,sex,Remark\na.png,50,1,x\na,50,1,x\nz.png,70,0,\n"
    root = _folder(tmp_path, text)
    (root / "images" / "Thumbs.db").write_bytes(b"x")
    columns = Columns()
    with pytest.raises(InputError, match=r"1 of 3 images are not in .* skip_unreadable"):
        _read(root)
    found = read_table(root / "labels.csv", root, columns, skip_missing=True)
    assert [row.id for row in found.rows] == ["a"]
    assert found.notes == [
        "1 rows without an image are left out: 'z.png' (line 4)",
        "1 repeated rows count once",
        "column 'sex': 1 is read as male, 0 as female; other codes: "
        "sex_values=male=CODE,female=CODE",
        "columns not used: 'Remark'",
        "2 images without a row are left out: images/b.png, images/c.png",
        "other files: 1 hidden",
    ]


def test_other_tables_are_ignored(tmp_path):
    root = _folder(tmp_path, "file,age\na.png,50\n")
    (root / "~$labels.xlsx").write_bytes(b"\x09Radiology")  # Excel's lock of an open workbook
    (root / "notes.csv").write_bytes(
        "Datei;Bemerkung\n1;verdreht, überbelichtet\n".encode("cp1252")
    )
    (root / "broken.xlsx").write_bytes(b"PK\3\4")
    found, ignored = find_table(root, "", Columns())
    assert (found.name, ignored) == ("labels.csv", ["broken.xlsx", "notes.csv"])


def test_own_codes_of_the_sex(tmp_path):
    root = _folder(tmp_path, "file,age,sex\na,50,1\nb,60,2\nc,70,9\n")
    with pytest.raises(InputError, match=r"sex '2' is not .* sex_values=male=CODE,female=CODE"):
        _read(root)
    rows = _read(root, sex_values="male=1,female=2|w,unknown=9").rows
    assert [row.male for row in rows] == [1, 0, -1]
    for wrong in ("1=male", "male=1,female=1", "male", "boy=1"):
        with pytest.raises(InputError, match="sex_values is"):
            _read(root, sex_values=wrong)


@pytest.mark.parametrize(
    ("header", "unit", "refused"),
    [
        ("age", "", True),
        ("age", "months", False),
        ("age", "years", False),
        ("Age (y)", "", False),
        ("age_years", "", False),
        ("AgeMonths", "", False),
    ],
)
def test_ages_that_look_like_years_need_a_unit(tmp_path, header, unit, refused):
    root = _folder(tmp_path, f"file,{header}\na,4\nb,7.5\nc,18\n")
    if refused:
        with pytest.raises(InputError, match="ages of 4 to 18, which look like years; give age_un"):
            _read(root, age_unit=unit)
    else:
        per = 12 if "y" in header + unit and "onths" not in header + unit else 1
        assert [row.age for row in _read(root, age_unit=unit).rows] == [
            4 * per,
            7.5 * per,
            18 * per,
        ]


@pytest.mark.parametrize("name", ["Patient Age", "chronological_age"])
def test_the_age_of_a_patient_is_not_that_of_the_bones(tmp_path, name):
    root = _folder(tmp_path, f"file,{name}\na,50\nb,60\nc,70\n")
    with pytest.raises(InputError, match=f"'{name}' is no bone age"):
        _read(root)
    assert len(_read(root, age=name).rows) == 3


def test_a_name_that_two_folders_hold_is_refused(tmp_path):
    root = _folder(tmp_path, "file,age\na.png,5\n", below="one")
    _folder(root, "file,age\na.png,5\n", below="two")
    with pytest.raises(InputError, match=r"may be one/a\.png and two/a\.png"):
        _read(root)

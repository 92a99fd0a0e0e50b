"""The RSNA data in every layout it comes in, made small; and everything wrong with a folder."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

import tfds_rsna  # noqa: F401  # registers the builders
from boneage_jax.data.files import read_grey
from boneage_jax.errors import InputError
from tests.support.rsna_layouts import (
    ALL,
    EXPECTED,
    FLAT,
    FULLY_UNPACKED,
    KAGGLE,
    NESTED,
    RSNA_ZIPS,
    TRAIN,
    TRAIN_CSV,
    UNPACKED,
    images,
    png,
    truth_xlsx,
    write,
    zipped,
)
from tfds_rsna.decode import Item, decode_all
from tfds_rsna.rsna_bone_age.labels import read_table
from tfds_rsna.rsna_bone_age.layouts import find_splits


@pytest.fixture
def raw(tmp_path):
    (tmp_path / "scratch").mkdir()
    return tmp_path / "raw"


def find(raw: Path):
    return find_splits(raw, raw.parent / "scratch")


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        (RSNA_ZIPS, ALL),
        (UNPACKED, ALL),
        (FULLY_UNPACKED, ALL),
        (RSNA_ZIPS | FULLY_UNPACKED, ALL),  # archives kept beside what was unpacked
        (KAGGLE, ("train",)),
        ({"archive.zip": zipped(KAGGLE)}, ("train",)),
        (KAGGLE | {"Bone age ground truth.xlsx": truth_xlsx()}, ("train", "test")),
        (FLAT, ("train",)),
        (NESTED, ("validation",)),
    ],
    ids=["zips", "unpacked", "nested unpacked", "both", "kaggle", "kaggle zip", "kaggle + truth",
         "flat", "validation only"],
)  # fmt: skip
def test_layout(raw, files, splits):
    found = find(write(raw, files))
    assert tuple(found) == splits
    for split, radiographs in found.items():
        assert {r.id: (r.bone_age, r.male) for r in radiographs} == EXPECTED[split]
        assert [r.id for r in radiographs] == sorted(r.id for r in radiographs)
        items = [Item(str(r.id), r.source) for r in radiographs]
        for decoded in decode_all(items, None, skip_unreadable=False, description=split):
            np.testing.assert_array_equal(decoded.image, read_grey(png(int(decoded.key))))


def test_kaggle_says_why_there_is_no_test_split(raw, capsys):
    find(write(raw, KAGGLE))
    notes = capsys.readouterr().err
    assert "has no ages" in notes and "2 test images without ages" in notes


def test_a_part_of_the_data_is_taken(raw, capsys):
    find(write(raw, {name: data for name, data in KAGGLE.items() if "1378" not in name}))
    assert "train: 2 of 3 labelled images found" in capsys.readouterr().err


def test_equal_ids_are_told_apart_by_folder(raw):
    files = {
        "train.csv": TRAIN_CSV.encode(),
        "Validation Dataset.csv": b"Image ID,male,Bone Age (months)\n1377,False,24\n",
        **images("training", TRAIN),
        **images("validation", [1377]),
    }
    found = find(write(raw, files))
    assert found["train"][0].bone_age == 180 and found["validation"][0].bone_age == 24
    (raw / "validation").rename(raw / "more")
    with pytest.raises(InputError, match="id 1377 is in the tables of train and validation"):
        find(raw)


def wrong_test_csv() -> bytes:
    return b"id,boneage,male\n" + b"".join(b"%d,164,True\n" % key for key in range(4360, 4560))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train/9.png": png(9), "train/8.png": png(8)}, "ids without label: 8, 9"),
        ({"train/hand.png": png(9)}, "ids without label: train/hand.png"),
        ({"train/1377.png": png(1377), "x/1377.jpg": png(1377)}, "two images of id 1377"),
        ({"test.csv": wrong_test_csv()}, "test.csv: .*not the published ground truth"),
        ({"other.csv": b"id,boneage,male\n1377,1,True\n"}, "two different train tables"),
        ({"train.csv": b"id,boneage,male\n"}, "train.csv: no rows"),
        ({"train.csv": b""}, "train.csv: expected the columns .*found nothing"),
        ({"train.csv": b"id,age,male\n1,2,True\n"}, "found the columns id,age,male"),
        ({"train.csv": b"id,boneage,male\n\n1377,241,True\n"}, "row 3: boneage '241'"),
        ({"train.csv": b"id,boneage,male\n1377,-1,True\n"}, "row 2: boneage '-1'"),
        ({"train.csv": b"id,boneage,male\n1377,nan,True\n"}, "row 2: boneage 'nan'"),
        ({"train.csv": b"id,boneage,male\n1377,ten,True\n"}, "row 2: boneage 'ten'"),
        ({"train.csv": b"id,boneage,male\n1377,9,maybe\n"}, "row 2: male 'maybe'"),
        ({"train.csv": b"id,boneage,male\n1377\n"}, "line 2 has 1 cells, its header 3"),
        ({"train.csv": b"id,male,boneage\n1377,True,120,5\n"}, "line 2 has 4 cells, its header 3"),
        ({"train.csv": b"id,boneage,male,male\n1377,9,1,0\n"}, "two columns called 'male'"),
        ({"train.csv": b"id,boneage,male\nx1,9,True\n"}, "row 2: id 'x1'"),
        ({"train.csv": b"id,boneage,male\n7,9,True\n7,9,True\n"}, "row 3: id 7 appears twice"),
        ({"train.csv": b"\xff\xfe\0"}, "train.csv: not a readable CSV"),
        ({"Bone age ground truth.xlsx": b"PK\3\4"}, "truth.xlsx: not a readable XLSX"),
        ({"more.zip": zipped(KAGGLE)[:-30]}, "more.zip: not a whole zip"),
    ],
)
def test_wrong_data_is_refused(raw, change, message):
    base = {"train.csv": TRAIN_CSV.encode(), **images("train", TRAIN)}
    with pytest.raises(InputError, match=message) as caught:
        find(write(raw, base | change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("files", "note"),
    [
        ({"~$notes.xlsx": b"\x09Radiology"}, "left out: 1 hidden"),
        ({"notes.csv": "Datei;Bemerkung\n1;\xfcber\n".encode("cp1252")}, "notes.csv is not one of"),
        ({"notes.xlsx": b"PK\3\4"}, "notes.xlsx is not one of"),
        ({"train/readme.txt": b"text"}, "left out: 1 not images"),
        ({"train/x.png~": b""}, "left out: 1 copies or unfinished"),
    ],
)
def test_files_of_another_kind_are_ignored_with_a_note(raw, capsys, files, note):
    base = {"train.csv": TRAIN_CSV.encode(), **images("train", TRAIN)}
    assert len(find(write(raw, base | files))["train"]) == 3
    assert note in capsys.readouterr().err


@pytest.mark.parametrize(
    "table",
    [
        TRAIN_CSV.replace(",", ";").replace("True", "WAHR").replace("False", "FALSCH").encode(),
        TRAIN_CSV.encode("utf-16"),
        TRAIN_CSV.replace("180", '"180,0"').encode("utf-8-sig"),
    ],
)
def test_a_table_saved_by_another_program(raw, table):
    found = find(write(raw, {"train.csv": table, **images("train", TRAIN)}))
    assert {r.id: (r.bone_age, r.male) for r in found["train"]} == EXPECTED["train"]


def test_images_without_suffix_and_behind_links(raw, tmp_path):
    write(tmp_path / "disk", {"1377": png(1377), "1378.png": png(1378)})
    write(raw, {"train.csv": TRAIN_CSV.encode(), "more.zip": zipped({"train/1379": png(1379)})})
    (raw / "train").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "up").symlink_to(raw)  # a loop
    assert [r.id for r in find(raw)["train"]] == [1377, 1378, 1379]


def test_ages_in_years_are_refused(raw):
    table = "id,boneage,male\n" + "".join(f"{key},{key % 18},True\n" for key in range(1, 31))
    with pytest.raises(InputError, match="no boneage is above 20, so these look like years"):
        find(write(raw, {"train.csv": table.encode(), **images("train", range(1, 31))}))


def test_folder_without_data_is_refused(raw):
    raw.mkdir()
    with pytest.raises(InputError, match="no label table found; expected the columns"):
        find(raw)
    with pytest.raises(InputError, match=r"other tables there: notes\.csv"):
        find(write(raw, {"notes.csv": b"a,b\n1,2\n"}))
    with pytest.raises(InputError, match="none of their images"):
        find(write(raw, {"train.csv": TRAIN_CSV.encode()}))


def test_rounded_test_ages_are_refused_in_any_form():
    rows = b"".join(b"%d,M,164\n" % key for key in range(4360, 4560))
    with pytest.raises(InputError, match="not the published"):
        read_table(b"Case ID,Sex,Ground truth bone age (months)\n" + rows, "truth.csv")


def test_table_spellings():
    text = "\ufeffID, BoneAge ,Male,comment\r\n7.png,12.0,1,x\r\n8,24,f,\r\n"
    table = read_table(text.encode(), "any.csv")
    assert table is not None and table.split == "train"
    assert table.labels == {7: (12, 1), 8: (24, 0)}


def test_prepared_records(raw, tmp_path):
    write(raw, RSNA_ZIPS)
    options = {"data_dir": tmp_path / "prepared", "raw_dir": raw}
    builder = tfds.builder("rsna_bone_age/256", **options)
    builder.download_and_prepare()
    assert not list((tmp_path / "prepared").rglob("unpacked*"))
    reader = tfds.builder("rsna_bone_age/256", data_dir=tmp_path / "prepared")
    assert "Halabi" in reader.info.citation and "test" in reader.info.description
    for split, labels in EXPECTED.items():
        source = reader.as_data_source(split)
        assert len(source) == len(labels)
        for record in source:
            key = record["id"]
            assert (record["bone_age"], record["male"]) == (
                np.float32(labels[key][0]),
                labels[key][1],
            )
            assert (record["height"], record["width"]) == (12 + key % 3, 9)
            assert record["image"].shape == (256, 256, 1) and record["image"].dtype == np.uint8
            assert (record["image"] == key % 251).all()


def test_original_size(raw, tmp_path):
    write(raw, KAGGLE)
    builder = tfds.builder("rsna_bone_age/original", data_dir=tmp_path / "out", raw_dir=raw)
    builder.download_and_prepare()
    for record in builder.as_data_source("train"):
        np.testing.assert_array_equal(record["image"][..., 0], read_grey(png(record["id"])))


def test_unreadable_images_stop_the_preparation_unless_skipped(raw, tmp_path, capsys):
    write(raw, KAGGLE)
    bad = raw / "boneage-training-dataset/boneage-training-dataset/1378.png"
    bad.write_bytes(png(1378)[:-20])
    options = {"data_dir": tmp_path / "out", "raw_dir": raw}
    with pytest.raises(InputError, match=r"1 of 3 images unreadable: .*1378\.png"):
        tfds.builder("rsna_bone_age/256", **options).download_and_prepare()
    assert not list((tmp_path / "out").rglob("1.0.0"))  # nothing half-done
    builder = tfds.builder("rsna_bone_age/256", skip_unreadable=True, **options)
    builder.download_and_prepare()
    assert builder.info.splits["train"].num_examples == 2
    assert "1378.png" in capsys.readouterr().err


def test_column_order_of_the_real_tables_is_free():
    rows = io.StringIO()
    writer = csv.writer(rows)
    writer.writerows([["male", "id", "boneage"], ["False", 5, 60]])
    table = read_table(rows.getvalue().encode(), "train.csv")
    assert table is not None and table.labels == {5: (60, 0)}

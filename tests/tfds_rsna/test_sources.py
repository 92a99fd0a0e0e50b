"""Each raw folder has a place of its own below the data folder, told by content."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

import tfds_rsna  # noqa: F401  (makes the data sets known to TFDS)
from boneage_jax.errors import InputError
from tests.support.rsna_folder import write
from tfds_rsna.builders import prepare
from tfds_rsna.fingerprint import fingerprint, read_fingerprint
from tfds_rsna.sources import place_of, prepared_sets

NAME = "rsna_bone_age/256"
BELOW = Path(NAME, "1.0.0")


def ids(builder) -> list[int]:
    return sorted(int(record["id"]) for record in builder.as_data_source("train"))


@pytest.fixture
def out(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "out"))
    return tmp_path / "out"


def test_two_raw_folders_do_not_overwrite_each_other(tmp_path, out, capsys):
    one, other = write(tmp_path / "one"), write(tmp_path / "other", ids=(7, 8))
    assert ids(prepare(NAME, one)) == [1, 2, 3]
    assert ids(prepare(NAME, other)) == [7, 8]
    capsys.readouterr()
    assert ids(prepare(NAME, one)) == [1, 2, 3] and ids(prepare(NAME, other)) == [7, 8]
    said = capsys.readouterr().err
    assert "preparing" not in said and said.count("is prepared in") == 2
    assert sorted(path.name[:-13] for path in (out / "sources").glob("*-*")) == ["one", "other"]


def test_a_copied_or_touched_folder_is_not_prepared_again(tmp_path, out, capsys):
    raw = write(tmp_path / "raw")
    prepare(NAME, raw)
    copy = Path(shutil.copytree(raw, tmp_path / "copy", copy_function=shutil.copyfile))
    os.utime(raw / "train.csv", ns=(1, 1))
    capsys.readouterr()
    assert ids(prepare(NAME, copy)) == ids(prepare(NAME, raw)) == [1, 2, 3]
    assert "preparing" not in capsys.readouterr().err


def test_contents_are_read_once_for_each_state_of_the_folder(tmp_path, out):
    raw, other = write(tmp_path / "raw"), write(tmp_path / "other", ids=(7, 8))
    prepare(NAME, raw)
    seen = out / "sources" / "seen.json"
    ((state, content),) = json.loads(seen.read_text()).items()
    prepare(NAME, other)
    ((_, foreign),) = (item for item in json.loads(seen.read_text()).items() if item[0] != state)
    # What is noted is believed, so the contents were not read again.
    seen.write_text(json.dumps({state: foreign}))
    assert ids(prepare(NAME, raw)) == [7, 8]
    os.utime(raw / "train.csv", ns=(1, 1))
    assert ids(prepare(NAME, raw)) == [1, 2, 3]
    assert list(json.loads(seen.read_text()).values()) == [foreign, content]


def test_a_long_reading_of_the_raw_folder_is_shown(tmp_path, capsys):
    (tmp_path / "set.zip").write_bytes(bytes(3000))
    (tmp_path / "test.zip").write_bytes(bytes(1000))
    quick = fingerprint(tmp_path, {})
    assert capsys.readouterr().err == ""
    assert fingerprint(tmp_path, {}, silent_seconds=0.0) == quick
    assert "reading the raw data once: 100%" in capsys.readouterr().err
    lines = [f"{name}.zip {hashlib.sha256(bytes(n)).hexdigest()}\n" for name, n in
             (("set", 3000), ("test", 1000))]  # fmt: skip
    assert quick.raw == hashlib.sha256("".join([*lines, "\n"]).encode()).hexdigest()


def test_a_changed_folder_is_noticed_and_what_was_made_before_stays(tmp_path, out, capsys):
    raw, other = write(tmp_path / "raw"), write(tmp_path / "other", ids=(7, 8))
    prepare(NAME, other)
    before = prepare(NAME, raw)
    # The same names, sizes and number of files: only the content differs.
    image = np.full((9, 9), 1, np.uint8)
    image[0, 0] = 2
    cv2.imwrite(str(raw / "train/1.png"), image)
    capsys.readouterr()
    builder = prepare(NAME, raw)
    said = capsys.readouterr().err
    assert "(the raw folder has changed)" in said
    assert f"{before.data_dir} holds what the folder held before; remove it" in said
    record = next(r for r in builder.as_data_source("train") if r["id"] == 1)
    assert set(np.unique(record["image"])) != {1}
    assert len(prepared_sets(out, BELOW)) == 3 and ids(prepare(NAME, other)) == [7, 8]
    assert ids(before) == [1, 2, 3]  # a training may be reading it


def test_equal_names_sizes_and_times_are_not_equal_content(tmp_path, out):
    one, other = write(tmp_path / "one"), tmp_path / "other"
    shutil.copytree(one, other)
    image = np.full((9, 9), 3, np.uint8)
    image[4, 4] = 1
    data = (other / "train/3.png").read_bytes()
    cv2.imwrite(str(other / "train/3.png"), image)
    padding = len(data) - (other / "train/3.png").stat().st_size
    if padding > 0:
        with (other / "train/3.png").open("ab") as file:
            file.write(b"\0" * padding)
    for folder in (one, other):
        for path in folder.rglob("*.*"):
            os.utime(path, ns=(1, 1))
    assert prepare(NAME, one).data_dir != prepare(NAME, other).data_dir


def test_raw_dir_through_tfds_finds_the_same_places(tmp_path, out):
    one, other = write(tmp_path / "one"), write(tmp_path / "other", ids=(7, 8))
    prepare(NAME, one)
    for raw, wanted in ((one, [1, 2, 3]), (other, [7, 8]), (one, [1, 2, 3])):
        options = {"builder_kwargs": {"raw_dir": raw}}
        source = tfds.data_source(NAME, split="train", data_dir=out, **options)
        assert sorted(int(record["id"]) for record in source) == wanted
    assert len(prepared_sets(out, BELOW)) == 2


def test_a_damaged_set_is_not_replaced_by_a_download(tmp_path, out):
    raw = write(tmp_path / "raw")
    made = Path(prepare(NAME, raw).data_dir)
    next(made.glob("*.array_record*")).unlink()
    with pytest.raises(InputError, match=rf"was made from a raw folder .*--raw_dir={raw}"):
        prepare(NAME, download=True)
    with pytest.raises(InputError, match=r"\(--overwrite\); name it"):
        prepare(NAME, download=True, overwrite=True)


def test_raw_data_does_not_lie_in_the_folder_of_prepared_data(tmp_path):
    raw = write(tmp_path / "raw")
    with pytest.raises(InputError, match="also the folder of prepared data"):
        prepare(NAME, raw, raw)


def test_a_reader_without_raw_dir_gets_the_newest_and_is_told(tmp_path, out, capsys):
    one, other = write(tmp_path / "one"), write(tmp_path / "other", ids=(7, 8))
    first = Path(prepare(NAME, one).data_dir)
    prepare(NAME, other)
    os.utime(first / "dataset_info.json", (1, 1))
    capsys.readouterr()
    assert ids(prepare(NAME)) == [7, 8]
    assert "is prepared in" in capsys.readouterr().err
    source = tfds.data_source(NAME, split="train", data_dir=out)
    assert sorted(int(record["id"]) for record in source) == [7, 8]
    said = capsys.readouterr().err
    assert f"the newest of 2 prepared sets, {out / 'sources' / 'other-'}" in said
    assert f"made from {other}" in said and "raw_dir names another" in said


def test_data_of_an_older_version_stays_where_it_is(tmp_path, out, capsys):
    """It lies in the data folder itself, with a digest of names, sizes and times."""
    raw = write(tmp_path / "raw")
    made = Path(prepare(NAME, raw).data_dir)
    old = out / BELOW
    old.parent.mkdir(parents=True)
    shutil.move(made, old)
    shutil.rmtree(out / "sources")
    (old / "prepared_from.json").write_text(json.dumps(_old_note(raw)))
    capsys.readouterr()
    assert ids(prepare(NAME, raw)) == [1, 2, 3] and ids(prepare(NAME)) == [1, 2, 3]
    assert "preparing" not in capsys.readouterr().err and not (out / "sources").exists()
    # Another folder gets a place of its own, and the old data stays.
    assert ids(prepare(NAME, write(tmp_path / "other", ids=(7, 8)))) == [7, 8]
    assert ids(prepare(NAME, raw)) == [1, 2, 3] and old.is_dir()


def _old_note(raw: Path) -> dict:
    """As the code before wrote it: sha256 over lines of name, size and time."""
    lines = []
    for path in raw.rglob("*"):
        if path.is_file():
            status = path.stat()
            lines.append(
                f"{path.relative_to(raw).as_posix()} {status.st_size} {status.st_mtime_ns}"
            )
    digest = hashlib.sha256()
    for line in sorted(lines):
        digest.update(line.encode() + b"\n")
    digest.update(b"\n")
    return {"raw": digest.hexdigest(), "settings": {"skip_unreadable": "False"}}


def test_tfds_manual_dir_stands_for_raw_dir(tmp_path, out):
    raw = write(tmp_path / "raw")
    builder = tfds.builder(NAME, data_dir=out)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=raw))
    assert ids(builder) == [1, 2, 3]
    assert ids(prepare(NAME)) == [1, 2, 3]


def test_each_manual_dir_is_read_from_its_own_place(tmp_path, out):
    raw, other = write(tmp_path / "raw"), write(tmp_path / "other", ids=(7, 8))
    prepare(NAME, raw)
    for folder, wanted in ((raw, [1, 2, 3]), (other, [7, 8]), (raw, [1, 2, 3])):
        config = tfds.download.DownloadConfig(manual_dir=folder)
        builder = tfds.builder(NAME, data_dir=out)
        builder.download_and_prepare(download_config=config)
        assert ids(builder) == wanted
    assert len(prepared_sets(out, BELOW)) == 2  # each prepared once, by whichever way
    assert "is prepared" and ids(prepare(NAME, other)) == [7, 8]


@pytest.mark.parametrize("name", [NAME, "radiograph_folder/256", "hand_mask/256"])
def test_a_manual_dir_that_is_not_there_is_refused_before_any_download(name, tmp_path, out):
    options = {"base_url": "http://127.0.0.1:1/"} if name == NAME else {}  # nothing listens there
    builder = tfds.builder(name, data_dir=out, **options)
    config = tfds.download.DownloadConfig(manual_dir=tmp_path / "missing")
    with pytest.raises(InputError, match=r"missing: no such folder, or it is empty"):
        builder.download_and_prepare(download_config=config)


def test_names_of_source_folders(tmp_path):
    found = place_of(tmp_path, Path("/data/RSNA: bone age (2017)/"), "0123456789abcdef")
    assert found == tmp_path / "sources" / "RSNA-bone-age-2017-0123456789ab"
    (tmp_path / "sources" / "first-0123456789ab").mkdir(parents=True)
    found = place_of(tmp_path, Path("/elsewhere/copy"), "0123456789abcdef")
    assert found.name == "first-0123456789ab"  # by content, not by name
    assert read_fingerprint(tmp_path) is None

"""Preparing a data set: once, again when the raw data changed, and never half."""

import errno
import fcntl
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from boneage_jax.errors import InputError
from boneage_jax.extensions import register_dataset
from tests.support.rsna_folder import write
from tfds_rsna.builders import prepare
from tfds_rsna.find_builder import NAMES, find_builder
from tfds_rsna.fingerprint import fingerprint, read_fingerprint

NAME = "rsna_bone_age/256"


@pytest.fixture
def raw(tmp_path, monkeypatch):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    return write(tmp_path / "raw")


def ids(builder) -> list[int]:
    return sorted(record["id"] for record in builder.as_data_source("train"))


def door(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tfds_rsna.prepare", *args],
        cwd=Path(__file__).parents[2], env={**os.environ, **env},
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip


def test_second_call_does_nothing(raw, tmp_path, capsys):
    assert ids(prepare(NAME, raw, tmp_path / "out")) == [1, 2, 3]
    assert "preparing rsna_bone_age/256" in capsys.readouterr().err
    again = prepare(NAME, raw, tmp_path / "out")
    notes = capsys.readouterr()
    assert "is prepared in" in notes.err and "images in" not in notes.err and not notes.out
    assert ids(again) == [1, 2, 3]
    assert ids(prepare(NAME, data_dir=tmp_path / "out")) == [1, 2, 3]  # raw data not needed now


def test_a_changed_raw_folder_is_noticed(raw, tmp_path, capsys):
    prepare(NAME, raw, tmp_path / "out")
    write(raw, ids=(1, 2, 3, 4))
    assert ids(prepare(NAME, raw, tmp_path / "out")) == [1, 2, 3, 4]
    assert "the raw folder has changed" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("incomplete*"))


def test_what_killed_processes_left_is_removed_after_a_day(raw, tmp_path, capsys):
    out, now = tmp_path / "out", time.time()
    for name, hours, hours_inside in (
        ("incomplete.dead_123", 25, 25),
        ("incomplete.young_12", 23, 25),
        ("incomplete.busy_123", 25, 1),
        ("incomplete.my_patients", 25, 25),
    ):
        inside = out / name / "records"
        inside.mkdir(parents=True)
        (inside / "half").write_text("half")
        for path, age in ((inside / "half", hours_inside), (inside, 25), (out / name, hours)):
            os.utime(path, (now - 3600 * age,) * 2)
    prepare(NAME, raw, out)
    left = {path.name for path in out.glob("incomplete*")}
    assert left == {"incomplete.young_12", "incomplete.busy_123", "incomplete.my_patients"}
    assert f"removed {out}/incomplete.dead_123, which" in capsys.readouterr().err


def test_of_two_processes_one_prepares(tmp_path):
    command = [sys.executable, "-m", "tfds_rsna.prepare", "hand_phantom/64-small"]
    options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    both = [
        subprocess.Popen(
            [*command, f"--data_dir={tmp_path}"], cwd=Path(__file__).parents[2], **options
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sorted("\nprepared " in text for text in said) == [False, True], said
    assert sorted("hand_phantom/64-small is prepared in" in text for text in said) == [False, True]
    assert not list(tmp_path.glob("incomplete*"))


def test_whoever_waited_looks_again(raw, tmp_path, capsys):
    """Another process holds the lock, and has prepared the data when it lets go."""
    out, done = tmp_path / "out", []
    whole = prepare(NAME, raw, tmp_path / "whole").data_dir
    out.mkdir()
    capsys.readouterr()
    with (out / ".rsna_bone_age-256.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        thread = threading.Thread(target=lambda: done.append(prepare(NAME, raw, out)))
        thread.start()
        thread.join(1.0)
        assert not done
        shutil.copytree(whole, out / Path(whole).relative_to(tmp_path / "whole"))
    thread.join(60)
    said = capsys.readouterr().err
    assert "another process prepares rsna_bone_age/256" in said and "preparing" not in said
    assert f"rsna_bone_age/256 is prepared in {out}" in said and ids(done[0]) == [1, 2, 3]


def test_a_file_system_without_locks(raw, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    assert ids(prepare(NAME, raw, tmp_path / "out")) == [1, 2, 3]


def test_changed_options_and_overwrite(raw, tmp_path, capsys):
    prepare(NAME, raw, tmp_path / "out")
    prepare(NAME, raw, tmp_path / "out", skip_unreadable=True)
    assert "the options have changed" in capsys.readouterr().err
    prepare(NAME, raw, tmp_path / "out", skip_unreadable=True, overwrite=True)
    assert "(--overwrite)" in capsys.readouterr().err


def test_a_failed_preparation_keeps_the_old_data(raw, tmp_path):
    prepare(NAME, raw, tmp_path / "out")
    (raw / "train/2.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"2\.png"):
        prepare(NAME, raw, tmp_path / "out")
    assert ids(prepare(NAME, data_dir=tmp_path / "out")) == [1, 2, 3]
    (source,) = (tmp_path / "out" / "sources").glob("raw-*")
    assert [path.name for path in (source / NAME).iterdir()] == ["1.0.0"]


@pytest.mark.parametrize("damage", ["records", "info"])
def test_damaged_prepared_data_is_made_again(raw, tmp_path, capsys, damage):
    path = Path(prepare(NAME, raw, tmp_path / "out").data_dir)
    if damage == "records":
        next(path.glob("*.array_record*")).unlink()
    else:
        (path / "dataset_info.json").write_text("{")
    with pytest.raises(InputError, match=r"was made from a raw folder \(.*--raw_dir=.*raw"):
        prepare(NAME, data_dir=tmp_path / "out")
    assert ids(prepare(NAME, raw, tmp_path / "out")) == [1, 2, 3]
    assert "the existing data is" in capsys.readouterr().err


def test_data_dir_inside_the_raw_folder(raw, capsys):
    for _ in range(2):
        assert ids(prepare(NAME, raw, raw / "prepared")) == [1, 2, 3]
    assert "is prepared in" in capsys.readouterr().err


def test_data_dir_from_the_environment(raw, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "env"))
    made = Path(prepare(NAME, raw).data_dir)
    assert made.parents[3] == tmp_path / "env" / "sources"
    assert made.parts[-4:] == (made.parents[2].name, *NAME.split("/"), "1.0.0")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mnist", {}, "unknown data set 'mnist': known are .*rsna_bone_age"),
        (None, {}, "data set None must be a text"),
        ("rsna_bone_age/100", {}, "no config '100'; it has 256"),
        (NAME, {"csv": "a.csv"}, "no option 'csv'; it has base_url"),
        (NAME, {"raw_dir": "/no/such/folder"}, "raw_dir=/no/such/folder: no such folder"),
        (NAME, {}, r"\(not prepared yet\); .*: python -m tfds_rsna.prepare rsna"),
        ("radiograph_folder", {"download": True}, "must be prepared in"),
        ("radiograph_folder", {"raw_dir": "/", "seed": "x"}, "seed='x' must be a number like 0"),
    ],
)
def test_wrong_input(tmp_path, name, options, message):
    with pytest.raises(InputError, match=message):
        prepare(name, **{"data_dir": tmp_path / "out"} | options)


def test_a_place_that_cannot_be_written(raw, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be prepared in .*file"):
        prepare(NAME, raw, tmp_path / "file")
    with pytest.raises(InputError, match=r"data_dir=.*/a\\xff: the name is not UTF-8; rename"):
        prepare(NAME, raw, tmp_path / "a\udcff")


@pytest.fixture
def small_files():
    """Lets this process write no more than 20 kB to a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_records_that_cannot_be_written(raw, tmp_path, small_files):
    """array_record raises no OSError."""
    noise = np.random.default_rng(0).integers(0, 256, (128, 128), np.uint8)
    cv2.imwrite(str(raw / "train/2.png"), noise)
    with pytest.raises(InputError, match=r"File too large.*; make room there, or name a") as caught:
        prepare(NAME, raw, tmp_path / "out")
    assert isinstance(caught.value.__cause__, RuntimeError) and "\n" not in str(caught.value)
    assert not list((tmp_path / "out").glob("incomplete*"))


def test_an_error_of_a_builder_is_no_full_disk(tmp_path):
    @register_dataset("unfinished")
    class Unfinished(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {"id": tfds.features.Text()}
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield next(iter(()))  # as a generator with a mistake does

    with pytest.raises(RuntimeError, match="generator raised StopIteration"):
        prepare("unfinished", data_dir=tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_every_builder_follows_the_conventions(name):
    cls, _ = find_builder(name)
    assert cls.name == name
    assert str(cls.VERSION) in cls.RELEASE_NOTES
    folder = Path(sys.modules[cls.__module__].__file__).parent
    for file in ("README.md", "CITATIONS.bib", "TAGS.txt"):
        assert (folder / file).is_file(), file
    assert cls.get_metadata().tags  # TFDS refuses tags it does not know


def test_fingerprint(raw, tmp_path):
    first = fingerprint(raw, {"seed": 1})
    assert fingerprint(raw, {"seed": 1}) == first
    assert fingerprint(raw, {"seed": 2}).raw == first.raw != fingerprint(None, {}).raw
    moved = raw.rename(tmp_path / "moved")
    os.utime(moved / "train.csv", ns=(1, 1))
    assert fingerprint(moved, {"seed": 1}).raw == first.raw  # content counts, not place or time
    text = (moved / "train.csv").read_text()
    (moved / "train.csv").write_text(text.replace("10", "11"))  # of the same size
    assert fingerprint(moved, {"seed": 1}).raw != first.raw
    (moved / "train.csv").write_text(text)
    (moved / "train.csv").rename(moved / "training.csv")
    assert fingerprint(moved, {"seed": 1}).raw != first.raw
    assert read_fingerprint(tmp_path) is None


def test_files_that_options_name_count_too(raw, tmp_path):
    masks = tmp_path / "masks"
    (masks / "review").mkdir(parents=True)
    (masks / "1.png").write_bytes(b"1")
    first = fingerprint(raw, {"masks": str(masks)})
    (masks / "review" / "1.png").write_bytes(b"what a person looks at")
    assert fingerprint(raw, {"masks": str(masks)}) == first
    (masks / "1.png").write_bytes(b"2")
    other = fingerprint(raw, {"masks": str(masks)})
    assert other.files != first.files and other.raw == first.raw


def test_door(raw, tmp_path):
    done = door(NAME, f"--raw_dir={raw}", TFDS_DATA_DIR=str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "rsna_bone_age/256/1.0.0 train: 3 images\n"
    assert len(done.stderr.splitlines()) == 5, done.stderr  # no noise of libraries
    wrong = door("rsna_bone_age/7", f"--raw_dir={raw}", f"--data_dir={tmp_path / 'out'}")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("error: rsna_bone_age has no config '7'")
    assert len(wrong.stderr.splitlines()) == 1
    usage = door("--help")
    assert usage.returncode == 0 and "--age_column" in usage.stdout


def test_interrupted_door_leaves_nothing_half_done(tmp_path):
    raw = tmp_path / "raw"
    (raw / "train").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (400, 400), dtype=np.uint8)
    cv2.imwrite(str(raw / "train/0.png"), noise)
    for key in range(1, 4000):
        os.link(raw / "train/0.png", raw / f"train/{key}.png")
    rows = "".join(f"{key},99,True\n" for key in range(4000))
    (raw / "train.csv").write_text(f"id,boneage,male\n{rows}")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "tfds_rsna.prepare", NAME]
    with subprocess.Popen(
        [*command, f"--raw_dir={raw}", f"--data_dir={out}"],
        cwd=Path(__file__).parents[2], stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 60
        while not list(out.rglob("incomplete.*_1.0.0")) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[1].rstrip().endswith("interrupted")
    assert process.returncode == 130
    assert sorted(p.name for p in out.iterdir()) == [
        *(".rsna_bone_age-256.lock", "downloads", "sources")
    ]
    assert [p.name for p in (out / "sources").iterdir()] == ["seen.json"]  # digests alone

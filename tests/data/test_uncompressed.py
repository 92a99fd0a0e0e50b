"""The uncompressed copy of a prepared data set: the same records, and never stale or half."""

import shutil
import threading
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest

from boneage_jax.config import base_config
from boneage_jax.data.loader import eval_batches, train_batches
from boneage_jax.data.source import open_split
from boneage_jax.data.uncompressed import Uncompressed, open_uncompressed
from boneage_jax.datasets import open_dataset
from boneage_jax.errors import InputError
from tfds_rsna.builders import prepare

NAME = "radiograph_folder/64"


def write_raw(folder: Path, count: int = 12, seed: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    rows = ["file,age,sex"]
    for index in range(count):
        cv2.imwrite(str(folder / f"x{index:02d}.png"), rng.integers(0, 256, (70, 60), np.uint8))
        rows.append(f"x{index:02d}.png,{12.5 * index},{'MF'[index % 2]}")
    (folder / "ages.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    prepare(NAME, write_raw(root / "raw"), root / "out", fractions="train=1.0")
    return root


@pytest.fixture
def builder(prepared, tmp_path):
    """Prepared data of its own for each test, as somebody would get it who only reads."""
    shutil.copytree(prepared / "out", tmp_path / "out")
    return prepare(NAME, data_dir=tmp_path / "out")


class OtherRecords:
    """A builder of the same data whose records come from `source`; notes the splits asked for."""

    def __init__(self, builder, source):
        self.data_path, self.info, self._source = builder.data_path, builder.info, source
        self.asked = []

    def as_data_source(self, split):
        self.asked.append(split)
        return self._source


def files(builder) -> Path:
    return Path(builder.data_path, "uncompressed")


def assert_like_records(copy: Uncompressed, builder) -> None:
    records = builder.as_data_source("train")
    assert len(copy) == len(records) > 0
    for index, record in enumerate(records):
        found = copy[index]
        assert found.keys() == record.keys()
        for key, value in record.items():
            np.testing.assert_array_equal(found[key], value)
            assert np.asarray(found[key]).dtype == np.asarray(value).dtype


def test_it_holds_what_the_records_hold(builder):
    copy = open_uncompressed(builder, "train")
    assert_like_records(copy, builder)
    records = builder.as_data_source("train")
    rows = np.array([5, 0, 11, 5])
    batch = copy.batch(rows, ("image", "bone_age", "id"))
    assert batch["image"].shape == (4, 64, 64, 1) and batch["image"].ctypes.data % 64 == 0
    for place, row in enumerate(rows):
        for key, values in batch.items():
            np.testing.assert_array_equal(values[place], records[int(row)][key])


def test_images_are_plain_numpy_files(builder):
    open_uncompressed(builder, "train")
    array = np.load(files(builder) / "train-image.npy", allow_pickle=False)
    np.testing.assert_array_equal(array[3], builder.as_data_source("train")[3]["image"])


@pytest.mark.parametrize("batches", [train_batches, eval_batches])
def test_batches_are_those_of_the_records(builder, batches):
    options = {"seed": 1} if batches is train_batches else {}
    found = []
    for kept in (False, True):
        config = base_config().data
        config.update({"name": "radiograph_folder", "config": "64", "uncompressed": kept})
        config.update({"data_dir": builder.data_dir.split("/radiograph_folder")[0]})
        config.validation_fraction = 0.0
        split = open_dataset(config).split("train")
        assert isinstance(split.source, Uncompressed) == kept
        stream = batches(split, ("bone_age", "male"), 5, put=lambda batch: batch, **options)
        found.append([next(stream) for _ in range(3)])
    for expected, batch in zip(*found, strict=True):
        assert expected.keys() == batch.keys()
        for key, values in expected.items():
            np.testing.assert_array_equal(batch[key], values)
            assert batch[key].dtype == values.dtype


def test_a_device_takes_a_batch_as_it_lies(builder):
    """No copy is what the aligned memory is for; on CPUs it can be seen by the address."""
    image = open_uncompressed(builder, "train").batch(np.arange(8), ("image",))["image"]
    array = jax.device_put(image)
    assert array.unsafe_buffer_pointer() == image.ctypes.data


def test_it_is_written_once(builder):
    open_uncompressed(builder, "train")
    before = (files(builder) / "train-image.npy").stat()
    assert_like_records(open_uncompressed(builder, "train"), builder)
    after = (files(builder) / "train-image.npy").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_new_records_make_a_new_copy(builder, prepared, tmp_path):
    old = open_uncompressed(builder, "train")[0]["image"]
    raw = write_raw(tmp_path / "raw", seed=1)
    again = prepare(NAME, raw, tmp_path / "out", fractions="train=1.0", overwrite=True)
    new = open_uncompressed(again, "train")
    assert_like_records(new, again)
    assert (new[0]["image"] != old).any()


def test_records_replaced_in_place_make_a_new_copy(builder, tmp_path):
    open_uncompressed(builder, "train")
    for path in Path(builder.data_path).glob("*array_record*"):
        path.touch()
    assert open_uncompressed(builder, "train", write=False) is None
    assert_like_records(open_uncompressed(builder, "train"), builder)


@pytest.mark.parametrize("name", ["train-image.npy", "train.npz"])
@pytest.mark.parametrize("damage", ["empty", "cut", "garbage", "pickle", "gone"])
def test_damaged_files_are_written_anew(builder, name, damage):
    open_uncompressed(builder, "train")
    path = files(builder) / name
    if damage == "gone":
        path.unlink()
    elif damage == "pickle":
        with path.open("wb") as file:
            np.save(file, np.array([{"a": 1}], object), allow_pickle=True)
    else:
        content = path.read_bytes()
        path.write_bytes({"empty": b"", "cut": content[:-1], "garbage": b"\x93X" * 99}[damage])
    assert open_uncompressed(builder, "train", write=False) is None
    assert_like_records(open_uncompressed(builder, "train"), builder)


def test_a_file_cut_off_while_in_use_ends_in_one_line(builder):
    copy = open_uncompressed(builder, "train")
    path = files(builder) / "train-image.npy"
    with path.open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(InputError, match=r"train-image\.npy was cut off"):
        copy.batch(np.arange(4), ("image",))


@pytest.mark.parametrize("hindrance", ["file", "disk"])
def test_without_a_place_to_write_the_records_are_read(builder, hindrance, monkeypatch, capsys):
    if hindrance == "file":
        files(builder).write_text("in the way")
    else:
        full = shutil.disk_usage("/")._replace(free=2**20)
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: full)
    source = open_split(builder, "train", True)
    assert not isinstance(source, Uncompressed) and len(source) == 12
    error = capsys.readouterr().err
    assert "cannot be written" in error and "slower" in error and error.count("\n") == 1


@pytest.mark.parametrize("uncompressed", [True, False])
@pytest.mark.parametrize(
    "damage", [lambda data: b"", lambda data: data[:-9], lambda data: data[9:]]
)
def test_damaged_records_are_refused_in_one_line(builder, damage, uncompressed):
    (path,) = Path(builder.data_path).glob("*train*array_record*")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"of split train are damaged .*remove that") as e:
        list(open_split(builder, "train", uncompressed))
    assert "\n" not in str(e.value)


def test_an_interrupted_write_leaves_nothing_that_is_read(builder):
    class Broken(list):
        def __getitem__(self, index):
            if index:
                raise KeyboardInterrupt
            return super().__getitem__(index)

    records = OtherRecords(builder, Broken(builder.as_data_source("train")))
    with pytest.raises(KeyboardInterrupt):
        open_uncompressed(records, "train")
    assert [path.name for path in files(builder).iterdir()] == [".lock"]
    assert_like_records(open_uncompressed(builder, "train"), builder)


def test_many_openers_write_once(builder):
    records = OtherRecords(builder, builder.as_data_source("train"))
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(open_uncompressed(records, "train")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert records.asked == ["train"] and [len(copy) for copy in found] == [12] * 4


def test_images_of_different_sizes_stay_in_their_records(prepared, tmp_path):
    builder = prepare(
        "radiograph_folder/original", prepared / "raw", tmp_path, fractions="train=1.0"
    )
    assert open_uncompressed(builder, "train") is None
    assert not files(builder).exists()

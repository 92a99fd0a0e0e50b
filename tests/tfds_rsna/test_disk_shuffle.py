"""Records beyond what TFDS keeps in memory are written without TensorFlow, in the same order."""

import cv2
import numpy as np
import pytest
from tensorflow_datasets.core import shuffle

from tfds_rsna.builders import prepare
from tfds_rsna.disk_shuffle import shuffling_on_disk

RECORDS = {f"{number}": bytes([number % 251]) * (number % 7) for number in range(300)}


def in_order(folder, **options) -> list[tuple[int, bytes]]:
    with shuffling_on_disk():
        shuffler = shuffle.Shuffler(folder, "train", **options)
        for key, data in RECORDS.items():
            shuffler.add(key, data)
        assert shuffler.size == sum(map(len, RECORDS.values())) and len(RECORDS) == sum(
            shuffler.bucket_lengths
        )
        return list(shuffler)


def test_the_order_is_that_of_memory_and_no_file_is_left(tmp_path, monkeypatch) -> None:
    in_memory = in_order(tmp_path)
    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 100)
    assert in_order(tmp_path) == in_memory
    assert sorted(data for _, data in in_memory) == sorted(RECORDS.values())
    assert not list(tmp_path.iterdir())


def test_a_doubled_key_is_still_found(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 10)
    with shuffling_on_disk():
        shuffler = shuffle.Shuffler(tmp_path, "train")
        for data in (b"first" * 10, b"second"):
            shuffler.add(b"7", data)
        with pytest.raises(shuffle.DuplicatedKeysError):
            list(shuffler)


def test_a_set_beyond_memory_is_prepared_and_read(tmp_path, monkeypatch) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 256, (140, 110), dtype=np.uint8)
        cv2.imwrite(str(raw / f"{number}.png"), pixels)
    rows = [f"{number},{12 * number + 10},{number % 2}" for number in range(12)]
    (raw / "ages.csv").write_text("\n".join(["id,boneage,male", *rows]))
    options = {"age_unit": "months", "fractions": "train=0.5,validation=0.5"}
    small = prepare("radiograph_folder/128", raw, tmp_path / "memory", **options)
    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 40_000)
    large = prepare("radiograph_folder/128", raw, tmp_path / "disk", **options)
    for split in small.info.splits:
        first, second = (builder.as_data_source(split) for builder in (small, large))
        assert [row["id"] for row in first] == [row["id"] for row in second]
        for one, other in zip(first, second, strict=True):
            np.testing.assert_array_equal(one["image"], other["image"])

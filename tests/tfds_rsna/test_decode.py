"""Decoding many images: order, memory, archives, and what happens to unreadable ones."""

import io
import zipfile

import cv2
import numpy as np
import pytest

from boneage_jax.errors import InputError
from tfds_rsna.decode import Item, ZipMember, decode_all


def write(folder, count: int) -> list[Item]:
    """Images of growing size, filled with their number."""
    items = []
    for number in range(count):
        path = folder / f"{number}.png"
        cv2.imwrite(str(path), np.full((10 + number, 20), number, np.uint8))
        items.append(Item(f"key{number}", path))
    return items


def run(items, size=8, skip_unreadable=False):
    return list(decode_all(items, size, skip_unreadable=skip_unreadable, description="test images"))


def test_order_and_original_size(tmp_path, capsys):
    decoded = run(write(tmp_path, 30))
    assert [d.key for d in decoded] == [f"key{n}" for n in range(30)]
    assert [(d.height, d.width) for d in decoded] == [(10 + n, 20) for n in range(30)]
    assert all(d.image.shape == (8, 8) and (d.image == n).all() for n, d in enumerate(decoded))
    assert "test images: 100%" in (shown := capsys.readouterr().err) and "30/30" in shown


def test_own_size(tmp_path):
    assert [d.image.shape for d in run(write(tmp_path, 3), size=None)] == [
        (10, 20), (11, 20), (12, 20),
    ]  # fmt: skip


def test_archive_gives_the_same_as_files(tmp_path):
    items = write(tmp_path, 12)
    with zipfile.ZipFile(tmp_path / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for item in items:
            archive.write(item.source, f"in/{item.source.name}")
    zipped = [
        Item(item.key, ZipMember(tmp_path / "all.zip", f"in/{item.source.name}")) for item in items
    ]
    for plain, packed in zip(run(items), run(zipped), strict=True):
        assert plain.key == packed.key
        np.testing.assert_array_equal(plain.image, packed.image)


def test_all_unreadable_images_are_named_at_once(tmp_path, capsys):
    items = write(tmp_path, 40)
    for number in range(5, 30):
        items[number].source.write_bytes(b"")
    items[0].source.unlink()
    with pytest.raises(InputError) as caught:
        run(items)
    message = str(caught.value)
    assert "26 of 40 images unreadable" in message and "and 6 more" in message
    assert "0.png (No such file" in message and "5.png (the file is empty)" in message
    assert "\n" not in message
    kept = run(items, skip_unreadable=True)
    assert [d.key for d in kept] == [f"key{n}" for n in range(40) if n in {1, 2, 3, 4} or n >= 30]
    assert "left out 26 of 40" in capsys.readouterr().err


def test_damaged_archive_members_are_unreadable(tmp_path):
    good = io.BytesIO()
    with zipfile.ZipFile(good, "w") as archive:
        archive.writestr("a.png", cv2.imencode(".png", np.eye(30, dtype=np.uint8))[1].tobytes())
    data = bytearray(good.getvalue())
    data[60] ^= 1  # inside the member: its CRC no longer matches
    (tmp_path / "bad.zip").write_bytes(data)
    items = [
        Item("a", ZipMember(tmp_path / "bad.zip", "a.png")),
        Item("b", ZipMember(tmp_path / "bad.zip", "missing.png")),
        Item("c", ZipMember(tmp_path / "none.zip", "a.png")),
    ]
    with pytest.raises(InputError, match="3 of 3 images unreadable"):
        run(items)


def test_memory_is_bounded(tmp_path):
    class Watched(list):
        taken = 0

        def __iter__(self):
            for item in super().__iter__():
                self.taken += 1
                yield item

    items = Watched(write(tmp_path, 1) * 2000)
    images = decode_all(items, 8, skip_unreadable=False, description="many")
    for _ in range(10):
        next(images)
    assert items.taken < 600  # a few per core, not all
    images.close()  # a stopped preparation does not decode the rest
    assert items.taken < 600


def test_no_items():
    assert run([]) == []


def test_notes_on_reading_are_gathered_by_file(tmp_path):
    items = write(tmp_path, 3)
    for number in (0, 2):  # large, and not of one grey level
        cv2.imwrite(str(items[number].source), np.eye(200, dtype=np.uint8))
    noted = {}
    list(decode_all(items, 8, skip_unreadable=False, description="images", noted=noted))
    assert noted == {
        str(items[1].source): ("all pixels have one value", "under 200 px on its short side")
    }

"""Finding image files: by name and content, behind links, and what is left out."""

import os
from collections import Counter
from pathlib import Path

import pytest

from boneage_jax.data.find_files import find_images, walk_files
from boneage_jax.errors import InputError

PNG = b"\x89PNG\r\n\x1a\n"
DICOM = b"\0" * 128 + b"DICM"


def fill(root: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def names(found, root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in found]


def test_files_folders_and_globs(tmp_path):
    good = ("b.PNG", "sub/a.dcm", "sub/deep/c.jpg")
    fill(tmp_path, dict.fromkeys((*good, "notes.txt", "._b.png", "__MACOSX/d.png"), b"x"))
    found = [tmp_path / name for name in good]
    assert find_images([tmp_path]) == find_images(tmp_path) == find_images(str(tmp_path)) == found
    assert find_images([tmp_path, tmp_path / "b.PNG", f"{tmp_path}/*.PNG"]) == found
    assert find_images([f"{tmp_path}/**/*.jpg"]) == found[2:]
    assert find_images([tmp_path / "notes.txt"]) == [tmp_path / "notes.txt"]


def test_files_without_suffix_are_recognised_by_content(tmp_path):
    images = {
        "1.2.826.0.1.3680043.9.7433.1000": DICOM,
        "IM0001": DICOM,
        "photo.jfif": b"\xff\xd8\xff\xe0",
        "scan.IMA": DICOM,
        "x.png": b"damaged: whoever reads it says so",
    }
    others = {"labels.csv": b"id,male\n", "empty": b"", "README": b"text", "hand.png~": PNG}
    fill(tmp_path, images | others | {"photo.bmp": b"BM", "DICOMDIR": DICOM, "Thumbs.db": b"x"})
    left_out = Counter()
    assert names(find_images(tmp_path, left_out), tmp_path) == sorted(images)
    assert left_out == {
        **{"not images": 3, "copies or unfinished": 1},
        **{"hidden": 2, "of other image formats": 1},
    }
    assert names(find_images(f"{tmp_path}/*.1000"), tmp_path) == ["1.2.826.0.1.3680043.9.7433.1000"]


def test_links_are_followed_once(tmp_path):
    fill(tmp_path / "disk", {"1.png": PNG, "sub/2.png": PNG})
    fill(tmp_path / "data", {"0.png": PNG, "inner/3.png": PNG})
    data = tmp_path / "data"
    (data / "more").symlink_to(tmp_path / "disk")
    (data / "again").symlink_to(tmp_path / "disk")
    (data / "a_link").symlink_to(data / "inner")
    (data / "inner" / "up").symlink_to(data)
    (data / "itself").symlink_to(data / "itself")
    (data / "gone.png").symlink_to(tmp_path / "gone.png")
    expected = ["0.png", "again/1.png", "again/sub/2.png", "gone.png", "inner/3.png"]
    left_out = Counter()
    assert names(find_images(data, left_out), data) == expected
    assert left_out == {"cannot be read": 1}
    # A pattern goes round a loop many times; each file counts once.
    assert len(find_images(f"{data}/**/*.png")) == 5
    assert len(find_images([data, data / "more", data / "inner" / "up"])) == 5


def test_what_cannot_be_read_is_counted(tmp_path, monkeypatch):
    fill(tmp_path, {"1.png": PNG, "secret/2.png": PNG})
    os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for ever
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "secret":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    left_out = Counter()
    assert names(find_images(tmp_path, left_out), tmp_path) == ["1.png"]
    assert left_out == {"folders that cannot be read": 1, "not files": 1}
    with pytest.raises(InputError, match="secret cannot be read: Permission denied"):
        find_images(tmp_path / "secret")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("no.png", "no such file"),
        ("*.tif", "no image found there; images are"),
        ("*.txt", r"no image found there \(1 not images\)"),
        ("folder", r"no image found there \(1 hidden\)"),
        ("x" * 300, "File name too long"),
        ("a\0b", "no such file"),
        ("pipe", "neither a file nor a folder"),
    ],
)
def test_what_is_not_found_is_named(tmp_path, pattern, message):
    fill(tmp_path, {"notes.txt": b"x", "folder/.hidden.png": PNG})
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match=message):
        find_images([f"{tmp_path}/{pattern}"])


def test_no_path_is_not_this_folder():
    with pytest.raises(InputError, match="no image given"):
        find_images([])
    with pytest.raises(InputError, match="an empty path"):
        find_images([""])


def test_a_walk_leaves_a_folder_out(tmp_path):
    fill(tmp_path, {"a/1.txt": b"", "b/2.txt": b""})
    skip = os.path.realpath(tmp_path / "a")
    assert list(walk_files(tmp_path, skip=skip)) == [tmp_path / "b" / "2.txt"]

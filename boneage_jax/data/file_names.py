"""Names of image files: their suffixes, and one form in which they are compared."""

import os
import re
import unicodedata
from pathlib import PurePath

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".dcm", ".dicom"})
# Suffixes of images that are recognised by their content, not by their name.
_RARE_SUFFIXES = frozenset({".dc3", ".dic", ".ima", ".img", ".jfif", ".jpe"})
# Images of formats that are not read.
OTHER_FORMATS = frozenset(
    {".avif", ".bmp", ".gif", ".heic", ".j2k", ".jp2", ".jxl", ".mha", ".nii", ".svg", ".webp"}
)
# What file managers, storage servers and archives add; in lower case.
_OF_SYSTEM = frozenset(
    {
        *("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "dicomdir", "@eadir"),
        *("#recycle", "$recycle.bin", "system volume information", "lost+found"),
    }
)
_BYTE = re.compile("[\udc80-\udcff]")  # that is no UTF-8, as `os.fsdecode` has it
_NO_CHARACTER = re.compile("[\ud800-\udc7f\udd00-\udfff]")
# Bytes 80 to 9F of Windows-1252; the five it leaves undefined stay control characters
# (https://encoding.spec.whatwg.org/#windows-1252).
_WINDOWS = {
    code: bytes([code]).decode("cp1252")
    for code in range(0x80, 0xA0)
    if code not in (0x81, 0x8D, 0x8F, 0x90, 0x9D)
}


def normal_name(name: str) -> str:
    """Returns a file name in the form in which names are compared: valid text, in NFC.

    macOS decomposes accented letters (NFD), spreadsheets compose them (NFC). Bytes that are not
    UTF-8, as archives of another code page leave them, are read as Windows-1252.
    """
    name = _NO_CHARACTER.sub("?", name)
    if _BYTE.search(name):
        name = decode_windows(name.encode("utf-8", "surrogateescape"))
    return unicodedata.normalize("NFC", name)


def decode_windows(data: bytes) -> str:
    """Decodes Windows-1252, in which every byte is a character."""
    return data.decode("latin-1").translate(_WINDOWS)


def bare_name(path: PurePath) -> str:
    """Returns the name of an image file without its suffix, spelt as on disk.

    Only suffixes of images are cut: names of DICOM files are often UIDs without suffix, whose
    last number (`.1000`) is part of the identifier (PS3.10, 8.2).
    """
    suffix = path.suffix.lower()
    return path.stem if suffix in IMAGE_SUFFIXES | _RARE_SUFFIXES | OTHER_FORMATS else path.name


def image_stem(path: PurePath) -> str:
    """Returns `bare_name` in the form of `normal_name`: the id by which an image is matched."""
    return normal_name(bare_name(path))


def is_hidden(name: str) -> bool:
    """Returns whether a file or folder is hidden or was put there by a system or program.

    E.g. `.DS_Store`, `._7.png` and `__MACOSX` of macOS, `~$ages.xlsx` of Excel, `Thumbs.db`.
    """
    return name.startswith((".", "~$")) or name.lower() in _OF_SYSTEM


def relative_name(path: PurePath, folder: str | os.PathLike[str]) -> str:
    """Returns the path below `folder` in the form of `normal_name`, with slashes."""
    return normal_name(path.relative_to(folder).as_posix())

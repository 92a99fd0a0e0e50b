"""Checks size and completeness of PNG, JPEG and TIFF files from their bytes, before decoding.

Decoders do not do this: OpenCV returns a truncated PNG or JPEG with the rest of the image grey, and
allocates any size that a header claims. All functions raise `ValueError` with the reason.
"""

import re
import struct
import zlib
from collections.abc import Iterator

MAX_PIXELS = 100_000_000  # the largest RSNA radiograph has 9 million

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_TIFF = (b"II*\x00", b"MM\x00*")
# The next marker in entropy-coded data: FF not followed by a stuffed 00, a restart or a fill.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_TIFF_TYPES = {3: "H", 4: "I"}  # SHORT, LONG: the only types of sizes and offsets


def sniff(data: bytes) -> str:
    """Returns the format of a file from its first bytes: `png`, `jpeg`, `tiff`, `dicom`, or ""."""
    if data.startswith(_PNG):
        return "png"
    if data.startswith(_JPEG):
        return "jpeg"
    if data.startswith(_TIFF):
        return "tiff"
    return "dicom" if data[128:132] == b"DICM" else ""


def check(data: bytes, form: str) -> None:
    """Checks a complete file of format `png`, `jpeg` or `tiff`.

    Raises:
      ValueError: truncated, damaged, without pixels, or with more than `MAX_PIXELS`.
    """
    try:
        width, height = {"png": _png_size, "jpeg": _jpeg_size, "tiff": _tiff_size}[form](data)
    except struct.error:
        raise ValueError(f"the {form.upper()} file is cut short") from None
    check_size(width, height)


def check_size(width: int, height: int) -> None:
    """Checks that an image has pixels, and at most `MAX_PIXELS`.

    Raises:
      ValueError: it has none, or too many.
    """
    if width <= 0 or height <= 0:
        raise ValueError(f"it has no pixels ({width} x {height})")
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"it claims {width} x {height} pixels; more than {MAX_PIXELS // 10**6} million is "
            "no radiograph"
        )


def _png_size(data: bytes) -> tuple[int, int]:
    """Walks the chunks up to IEND, checking every CRC (PNG specification, section 5)."""
    at, first, size = len(_PNG), True, (0, 0)
    view = memoryview(data)
    while True:
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 8 + length
        (crc,) = struct.unpack_from(">I", data, end)
        if first != (kind == b"IHDR"):
            raise ValueError("the PNG file is damaged: its header is not where it belongs")
        if zlib.crc32(view[at + 4 : end]) != crc:
            raise ValueError("the PNG file is damaged: a checksum does not match")
        if first:
            size = struct.unpack_from(">II", data, at + 8)
            check_size(*size)
        if kind == b"IEND":
            return size
        at, first = end + 4, False


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """Walks the segments up to EOI (ITU-T T.81, annex B), skipping embedded thumbnails."""
    at, size = 2, (0, 0)
    while True:
        found = _JPEG_MARKER.search(data, at)
        if not found:
            raise ValueError("the JPEG file is cut short")
        marker, at = found[0][1], found.end()
        if marker == 0xD9:
            if size == (0, 0):
                raise ValueError("the JPEG file is damaged: it holds no frame")
            return size
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 3)
            check_size(width, height)
            size = (width, height)
        (length,) = struct.unpack_from(">H", data, at)
        at += length


def _tiff_size(data: bytes) -> tuple[int, int]:
    """Reads the first directory; its strips or tiles must be inside the file (TIFF 6.0)."""
    order = "<" if data[:2] == b"II" else ">"
    (at,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, at)
    tags = {}
    for entry in range(count):
        tag, kind, number = struct.unpack_from(f"{order}HHI", data, at + 2 + 12 * entry)
        if tag in (256, 257, 273, 279, 324, 325):
            tags[tag] = list(_tiff_values(data, order, kind, number, at + 10 + 12 * entry))
    struct.unpack_from(f"{order}I", data, at + 2 + 12 * count)  # address of the next image, or 0
    if not (tags.get(256) and tags.get(257)):
        raise ValueError("the TIFF file is damaged: it names no size")
    offsets, lengths = tags.get(273, tags.get(324)), tags.get(279, tags.get(325))
    if not offsets or not lengths:
        raise ValueError("the TIFF file is damaged: it holds no pixels")
    if any(start + size > len(data) for start, size in zip(offsets, lengths, strict=False)):
        raise ValueError("the TIFF file is cut short")
    return tags[256][0], tags[257][0]


def _tiff_values(data: bytes, order: str, kind: int, number: int, at: int) -> Iterator[int]:
    if kind not in _TIFF_TYPES:
        raise ValueError("the TIFF file is damaged: a size is not an integer")
    letter = _TIFF_TYPES[kind]
    if number * struct.calcsize(letter) > 4:  # longer values are stored elsewhere
        (at,) = struct.unpack_from(f"{order}I", data, at)
    if at + number * struct.calcsize(letter) > len(data):
        raise ValueError("the TIFF file is cut short")
    yield from struct.unpack_from(f"{order}{number}{letter}", data, at)

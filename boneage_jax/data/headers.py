"""Tells formats apart, and checks size and completeness of PNG and JPEG before they are decoded.

Decoders do not do this: OpenCV returns a truncated JPEG with the rest of the image grey, and
allocates any size that a header claims.
"""

import contextlib
import re
import struct
import zlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import NamedTuple

MAX_PIXELS = 100_000_000  # the largest RSNA radiograph has 9 million
_most_pixels = ContextVar("most_pixels", default=MAX_PIXELS)

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_TIFF = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")  # the latter two are BigTIFF
# The next marker in entropy-coded data: FF not followed by a stuffed 00, a restart or a fill.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_JPEG_FRAMES = (frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}) | {0xF7}
_JPEG_LS, _EOI = 0xF7, b"\xff\xd9"


class Png(NamedTuple):
    """Size in pixels, bits of a sample, and the grey value that is transparent, None for none."""

    width: int
    height: int
    bits: int
    transparent: int | None


class Jpeg(NamedTuple):
    """Size in pixels, bits of a sample, and whether the file is JPEG-LS."""

    width: int
    height: int
    bits: int
    is_ls: bool


def sniff(data: bytes) -> str:
    """Returns the format of a file from its first bytes: `png`, `jpeg`, `tiff`, `dicom`, or "".

    A DICOM file may begin like a TIFF (PS3.10, 7.1), and old ones lack preamble and meta header.

    Raises:
      ValueError: there are none.
    """
    if not data:
        raise ValueError("the file is empty")
    if data[128:132] == b"DICM":
        return "dicom"
    if data.startswith(_PNG):
        return "png"
    if data.startswith(_JPEG):
        return "jpeg"
    if data.startswith(_TIFF):
        return "tiff"
    return "dicom" if _begins_data_set(data) else ""


def _begins_data_set(data: bytes) -> bool:
    """Whether the bytes begin with a DICOM element of group 2 or 8, as data sets do."""
    if len(data) < 12:
        return False
    for order in "<>":
        group, element, short = struct.unpack_from(f"{order}HH2xH", data)
        (long,) = struct.unpack_from(f"{order}I", data, 4)  # of implicit VR
        length = short if data[4:6].isalpha() and data[4:6].isupper() else long
        if group in (2, 8) and element <= 0x0070 and length < 1024:
            return True
    return False


@contextlib.contextmanager
def pixel_limit(pixels: int) -> Iterator[None]:
    """Context manager: in this thread, images of more pixels are refused before they are decoded.

    Args:
      pixels: the limit instead of `MAX_PIXELS`.
    """
    token = _most_pixels.set(pixels)
    try:
        yield
    finally:
        _most_pixels.reset(token)


def most_pixels() -> int:
    """Returns the largest number of pixels that is read: `MAX_PIXELS`, or that of `pixel_limit`."""
    return _most_pixels.get()


def check_size(width: int, height: int) -> None:
    """Checks that an image has pixels, and at most `most_pixels()`.

    Raises:
      ValueError: it has none, or too many.
    """
    if width <= 0 or height <= 0:
        raise ValueError(f"it has no pixels ({width} x {height})")
    if width * height > most_pixels():
        raise ValueError(
            f"it claims {width} x {height} pixels; more than {most_pixels() / 1e6:g} million is "
            "no radiograph"
        )


def check_png(data: bytes) -> Png:
    """Walks the chunks up to IEND, checking every CRC (PNG specification, section 5).

    Raises:
      ValueError, struct.error: truncated, damaged, animated, without pixels, or too large.
    """
    at, transparent = len(_PNG), None
    header: tuple[int, int, int, int] | None = None
    view = memoryview(data)
    while True:
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 8 + length
        (crc,) = struct.unpack_from(">I", data, end)
        if (header is None) != (kind == b"IHDR"):
            raise ValueError("the PNG file is damaged: its header is not where it belongs")
        if zlib.crc32(view[at + 4 : end]) != crc:
            raise ValueError("the PNG file is damaged: a checksum does not match")
        if header is None:
            header = struct.unpack_from(">IIBB", data, at + 8)
            check_size(header[0], header[1])
        if kind == b"acTL" and struct.unpack_from(">I", data, at + 8)[0] > 1:  # frames
            raise ValueError("the PNG file is animated; save the radiograph as one picture")
        if kind == b"tRNS" and header[3] == 0 and length == 2:
            (transparent,) = struct.unpack_from(">H", data, at + 8)
        if kind == b"IEND":
            return Png(header[0], header[1], header[2], transparent)
        at = end + 4


def check_jpeg(data: bytes) -> Jpeg:
    """Walks the segments up to EOI (ITU-T T.81, annex B), skipping embedded thumbnails.

    Of JPEG-LS, whose coded data has other rules, only frame header and EOI are looked for: CharLS
    takes 4 s and more to notice a missing end.

    Raises:
      ValueError, struct.error: truncated, damaged, without pixels, or too large.
    """
    at, found = 2, None
    while True:
        marker = _JPEG_MARKER.search(data, at)
        if not marker:
            raise ValueError("the JPEG file is cut short")
        kind, at = marker[0][1], marker.end()
        if kind == 0xD9:
            if found is None:
                raise ValueError("the JPEG file is damaged: it holds no frame")
            return found
        if kind in _JPEG_FRAMES:
            bits, height, width = struct.unpack_from(">BHH", data, at + 2)
            check_size(width, height)
            found = Jpeg(width, height, bits, kind == _JPEG_LS)
            if found.is_ls and data.find(_EOI, at) > 0:
                return found
        (length,) = struct.unpack_from(">H", data, at)
        at += length

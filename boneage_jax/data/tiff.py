"""Reads TIFF and BigTIFF: the first page, by OpenCV or Pillow, whichever reads its kind right.

Neither reads all kinds, and each is wrong on some without a word: OpenCV leaves a damaged strip of
8 bits black and drops the alpha of grey, Pillow keeps only the high bytes of 16-bit colour, and
neither inverts 16 bits whose zero is white. So the header decides which one reads a file.
"""

import io
import struct
from typing import Any, NamedTuple

import cv2
import numpy as np

from boneage_jax.data import notes
from boneage_jax.data.grey import Picture, opacity
from boneage_jax.data.headers import check_size
from boneage_jax.data.silence import warnings_off

_TYPES = {1: "B", 3: "H", 4: "I", 16: "Q"}  # integers of sizes, offsets and kinds
_PAGES = 10_000  # counted at most; a chain of directories may be a circle
_COMPRESSIONS = {
    **{1: "no", 2: "CCITT", 3: "CCITT 3", 4: "CCITT 4", 5: "LZW", 6: "old JPEG", 7: "JPEG"},
    **{8: "deflate", 32773: "PackBits", 32946: "deflate", 34712: "JPEG 2000", 34887: "LERC"},
    **{34925: "LZMA", 50000: "ZSTD", 50001: "WebP", 50002: "JPEG XL"},
}
_COLOURS = {
    **{0: "white is zero", 1: "black is zero", 2: "RGB", 3: "palette", 4: "mask", 5: "CMYK"},
    **{6: "YCbCr", 8: "CIELAB", 32803: "colour filter"},
}
_BY_OPENCV = {1, 5, 8, 32773, 32946}  # compressions
_BY_PILLOW = {1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946, 34925, 50000}
_DEEP = ("I;16", "I;16L", "I;16B", "I", "F")  # Pillow's modes
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3
_FORMATS = {_UNSIGNED, _SIGNED, _FLOAT}
_UNASSOCIATED = 2  # alpha that the colours are not multiplied by yet
_MAX_BYTES = 1 << 30  # decoded
_TAGS = {256, 257, 258, 259, 262, 273, 277, 278, 279, 284, 322, 323, 324, 325, 338, 339, 32997}


class Header(NamedTuple):
    """What the first directory says."""

    width: int
    height: int
    bits: tuple[int, ...]
    sample_format: int
    compression: int
    photometric: int
    samples: int
    separate: bool  # planes one after the other
    alpha: int
    pages: int

    def __str__(self) -> str:
        kind = {_SIGNED: "signed ", _FLOAT: "float "}.get(self.sample_format, "")
        colours = _COLOURS.get(self.photometric, f"photometric {self.photometric}")
        compression = _COMPRESSIONS.get(self.compression, f"unknown ({self.compression})")
        return (
            f"{self.samples} x {max(self.bits)} {kind}bits ({colours}), {compression} compression"
            f"{', separate planes' if self.separate and self.samples > 1 else ''}"
        )


def read_tiff(data: bytes) -> Picture:
    """Decodes the first page of a complete file.

    Raises:
      ValueError, struct.error: truncated, damaged, too large, or of a kind that is not supported.
      cv2.error: damaged.
    """
    header = read_header(data)
    deep = max(header.bits) > 8
    found = _by_opencv(data, header) if _opencv_reads(header) else None
    found = found or _by_pillow(data, header)
    if found is None:
        raise ValueError(
            f"the TIFF file ({header}) is damaged, or its kind is not supported; save it as PNG"
        )
    values, opaque = found
    said = [notes.first_page(header.pages)] * (header.pages > 1)
    said += [notes.INVERTED] * (header.photometric == 0)
    # Both invert up to 8 bits themselves.
    return Picture(values, opaque, deep and header.photometric == 0, tuple(said))


def read_header(data: bytes) -> Header:
    """Reads the first directory; its strips or tiles must be complete (TIFF 6.0, BigTIFF).

    Raises:
      ValueError, struct.error: truncated, damaged or too large.
    """
    directories = _Directories(data)
    tags, following = directories.read(directories.first)
    if not (tags.get(256) and tags.get(257)):
        raise ValueError("the TIFF file is damaged: it names no size")
    if not tags.get(262):  # decoders disagree
        raise ValueError("the TIFF file does not say whether zero is black; save it as PNG")

    def first(tag: int, default: int) -> int:
        return (tags.get(tag) or [default])[0]

    header = Header(
        width=first(256, 0),
        height=first(257, 0),
        bits=tuple(tags.get(258) or [1]),
        sample_format=first(339, _UNSIGNED),
        compression=first(259, 1),
        photometric=first(262, 1),
        samples=first(277, 1),
        separate=first(284, 1) == 2,
        alpha=first(338, 0),
        pages=1 + directories.count(following),
    )
    check_size(header.width, header.height)
    if header.width * header.height * header.samples * max(header.bits) > 8 * _MAX_BYTES:
        raise ValueError(f"it claims {header.width} x {header.height} pixels of {header}")
    if first(32997, 1) > 1:
        raise ValueError(f"the TIFF file holds a volume of {first(32997, 1)} slices")
    _check_complete(data, header, tags)
    return header


class _Directories:
    """The image directories of a file, each a table of tags."""

    def __init__(self, data: bytes):
        self._data = data
        self._order = "<" if data[:2] == b"II" else ">"
        self._big = 43 in data[2:4]
        self._offset = "Q" if self._big else "I"
        (self.first,) = self._unpack(self._offset, 8 if self._big else 4)

    def read(self, at: int) -> tuple[dict[int, list[int]], int]:
        """Returns the tags that hold integers, and the place of the next directory or 0."""
        count, entry, at = self._entries(at)
        tags = {}
        for place in range(at, at + entry * count, entry):
            tag, kind = self._unpack("HH", place)
            if tag in _TAGS:
                tags[tag] = self._values(kind, place)
        return tags, self._unpack(self._offset, at + entry * count)[0]

    def count(self, at: int) -> int:
        """Counts the directories from `at` on; a chain that leaves the file ends there."""
        found = 0
        while at and found < _PAGES:
            try:
                count, entry, at = self._entries(at)
                (at,) = self._unpack(self._offset, at + entry * count)
            except struct.error:
                break
            found += 1
        return found

    def _entries(self, at: int) -> tuple[int, int, int]:
        """Returns the number of entries, the bytes of each, and where they begin."""
        (count,) = self._unpack("Q" if self._big else "H", at)
        if count > len(self._data):
            raise struct.error
        return count, 20 if self._big else 12, at + (8 if self._big else 2)

    def _values(self, kind: int, place: int) -> list[int]:
        if kind not in _TYPES:
            raise ValueError("the TIFF file is damaged: a size is not an integer")
        (number,) = self._unpack(self._offset, place + 4)
        length = number * struct.calcsize(_TYPES[kind])
        at = place + 4 + struct.calcsize(self._offset)
        if length > struct.calcsize(self._offset):  # longer values are stored elsewhere
            (at,) = self._unpack(self._offset, at)
        if at + length > len(self._data):
            raise struct.error
        return list(self._unpack(f"{number}{_TYPES[kind]}", at))

    def _unpack(self, letters: str, at: int) -> tuple[Any, ...]:
        return struct.unpack_from(self._order + letters, self._data, at)


def _check_complete(data: bytes, header: Header, tags: dict[int, list[int]]) -> None:
    """Checks that all strips or tiles are there, and whole as far as their lengths tell."""
    tiled = 324 in tags
    offsets, lengths = (tags.get(324), tags.get(325)) if tiled else (tags.get(273), tags.get(279))
    if not offsets or not lengths:
        raise ValueError("the TIFF file is damaged: it holds no pixels")
    if tiled:
        width, height = ((tags.get(tag) or [0])[0] for tag in (322, 323))
    else:
        width, height = header.width, min((tags.get(278) or [header.height])[0], header.height)
    check_size(width, height)
    across, down = -(-header.width // width), -(-header.height // height)
    planes = header.samples if header.separate else 1
    parts = across * down * planes
    pairs = list(zip(offsets, lengths, strict=False))
    if len(pairs) < parts or any(start + size > len(data) for start, size in pairs):
        raise ValueError("the TIFF file is cut short")
    if header.compression == 1 and header.photometric != 6:  # YCbCr may be subsampled
        samples = 1 if header.separate else header.samples
        row = -(-width * samples * max(header.bits) // 8)
        rows = across * down * height if tiled else header.height
        if sum(size for _, size in pairs) < row * rows * planes:
            raise ValueError("the TIFF file is cut short")


def _opencv_reads(header: Header) -> bool:
    """Whether OpenCV reads this kind right, or else refuses it."""
    bits = set(header.bits)
    if len(bits) != 1 or (header.separate and header.samples > 1):
        return False
    if bits == {8}:  # damage in compressed strips of 8 bits it ignores
        plain = header.compression == 1 and header.sample_format == _UNSIGNED
        return plain and (header.samples, header.photometric) in ((1, 0), (1, 1), (1, 3), (3, 2))
    if header.compression not in _BY_OPENCV:
        return False
    if header.samples == 1:
        packed = {10, 12, 14} if header.sample_format == _UNSIGNED else set()
        return header.photometric in (0, 1) and bits <= {16, 32, 64} | packed
    return header.photometric == 2 and header.samples in (3, 4) and bits <= {16, 32, 64}


def _by_opencv(data: bytes, header: Header) -> tuple[np.ndarray, np.ndarray | None] | None:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None or not image.size:
        return None
    if image.ndim == 2 or image.shape[-1] < 4:
        return image, None
    return image[..., :3], opacity(image[..., 3]) if header.alpha == _UNASSOCIATED else None


def _by_pillow(data: bytes, header: Header) -> tuple[np.ndarray, np.ndarray | None] | None:
    """Decodes with Pillow, which raises where a strip is damaged; None if it may be wrong."""
    from PIL import Image

    if header.compression not in _BY_PILLOW or header.sample_format not in _FORMATS:
        return None
    try:
        with warnings_off():
            image = Image.open(io.BytesIO(data), formats=("TIFF",))
            image.getexif()  # asked for the orientation after decoding
        image.load()
    except Exception:  # of many types on damaged files
        return None
    if max(header.bits) > 8:
        # Of these Pillow (13.0) swaps the bytes that libtiff has swapped already.
        swapped = image.mode in ("I", "F") and header.compression != 1 and data[:2] == b"MM"
        usable = image.mode in _DEEP and not swapped
        values = _deep(np.asarray(image), header) if usable else None
        return None if values is None else (values, None)
    plain = header.sample_format == _UNSIGNED
    if plain and image.mode in ("1", "L"):
        return np.asarray(image.convert("L")), None
    if plain and image.mode == "LA":
        both = np.asarray(image)
        return both[..., 0], opacity(both[..., 1])
    if plain and image.mode in ("RGB", "RGBA"):
        colours = np.asarray(image)
        alpha = opacity(colours[..., 3]) if image.mode == "RGBA" else None
        return np.ascontiguousarray(colours[..., 2::-1]), alpha
    if image.mode == "LAB":
        return np.ascontiguousarray(_lab_to_rgb(image)[..., ::-1]), None
    # Palettes of 8 bits, CMYK and signed bytes are OpenCV's, now that they are known whole.
    found = _by_opencv(data, header)
    if found is None and plain and image.mode == "P":
        return np.ascontiguousarray(np.asarray(image.convert("RGB"))[..., ::-1]), None
    return found


def _lab_to_rgb(image: Any) -> np.ndarray:
    """Converts CIELAB; OpenCV shows it for another white and gamma, greys up to 9 levels off."""
    from PIL import ImageCms

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return np.asarray(ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB"))


def _deep(values: np.ndarray, header: Header) -> np.ndarray | None:
    """Returns grey of more than 8 bits in the type of the file."""
    if header.samples != 1:
        return None
    if values.dtype == np.int32 and header.sample_format == _UNSIGNED:
        return values.view(np.uint32)
    return values.astype(values.dtype.newbyteorder("="), copy=False)

"""DICOM files with one damaged element, for fuzz.py: refused in a line, or read as pydicom does.

Each of 48 elements is left out, emptied, written twice, given two values, another VR or an absurd
value, in files of several kinds. A picture that is accepted is compared with what pydicom's own
functions make of the same bytes.
"""

import io
import itertools
import random
import struct
import warnings
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
from pydicom import uid
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, apply_windowing

from boneage_jax.data import notes
from boneage_jax.data.files import read_radiograph

Elements = dict[tuple[int, int], tuple[bytes, bytes]]  # VR and value by tag

_LONG = (b"OB", b"OW", b"SQ", b"UN", b"UT")  # VRs with a length of four bytes
_SHAPE = (24, 20)


def _us(*numbers: int) -> tuple[bytes, bytes]:
    return b"US", struct.pack(f"<{len(numbers)}H", *numbers)


def _text(vr: str, text: str) -> tuple[bytes, bytes]:
    return vr.encode(), text.encode() + b" " * (len(text) % 2)


def _items(*elements: Elements) -> tuple[bytes, bytes]:
    item = b"".join(_encode(each) for each in elements)
    return b"SQ", struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item


def _encode(elements: Elements) -> bytes:
    out = []
    for (group, element), (vr, value) in sorted(elements.items()):
        length = struct.pack(
            "<2xI" if vr in _LONG else "<H", len(value) & (0xFFFFFFFF if vr in _LONG else 0xFFFF)
        )
        out.append(struct.pack("<HH", group, element) + vr + length + value)
    return b"".join(out)


def _table(entries: np.ndarray, first: int = 0, bits: int = 16) -> tuple[bytes, bytes]:
    packed = b"OW", entries.astype("<u2").tobytes()
    return _items({(0x28, 0x3002): _us(len(entries), first, bits), (0x28, 0x3006): packed})


def _kinds() -> dict[str, Elements]:
    """Sound files: a window, a table, padding without a window, bytes, colours, a palette."""
    ramp = np.linspace(0, 4095, _SHAPE[0] * _SHAPE[1]).astype("<u2").reshape(_SHAPE)
    base: Elements = {
        **{
            (2, 0x02): _text("UI", "1.2.840.10008.5.1.4.1.1.1\0"),
            (2, 0x10): _text("UI", "1.2.840.10008.1.2.1\0"),
        },
        **{(8, 0x05): _text("CS", "ISO_IR 100"), (8, 0x08): _text("CS", "ORIGINAL\\PRIMARY")},
        **{
            (8, 0x16): _text("UI", "1.2.840.10008.5.1.4.1.1.1\0"),
            (8, 0x18): _text("UI", "1.2.3\0"),
        },
        **{(8, 0x20): _text("DA", "20260101"), (8, 0x60): _text("CS", "DX")},
        **{(0x10, 0x10): _text("PN", "A^B"), (0x10, 0x20): _text("LO", "7")},
        **{(0x18, 0x15): _text("CS", "HAND"), (0x18, 0x1164): _text("DS", "0.14\\0.14")},
        **{(0x20, 0x13): _text("IS", "1"), (0x20, 0x62): _text("CS", "L")},
        **{(0x28, 0x02): _us(1), (0x28, 0x04): _text("CS", "MONOCHROME2")},
        **{(0x28, 0x08): _text("IS", "1"), (0x28, 0x10): _us(24), (0x28, 0x11): _us(20)},
        **{(0x28, 0x30): _text("DS", "0.14\\0.14"), (0x28, 0x34): _text("IS", "1\\1")},
        **{(0x28, 0x100): _us(16), (0x28, 0x101): _us(12), (0x28, 0x102): _us(11)},
        **{(0x28, 0x103): _us(0), (0x28, 0x106): _us(0), (0x28, 0x107): _us(4095)},
        **{(0x28, 0x1052): _text("DS", "-1024"), (0x28, 0x1053): _text("DS", "2")},
        **{(0x28, 0x1054): _text("LO", "US"), (0x28, 0x2110): _text("CS", "00")},
        **{(0x2050, 0x20): _text("CS", "IDENTITY"), (0x7FE0, 0x10): (b"OW", ramp.tobytes())},
    }
    window: Elements = {
        **{(0x28, 0x1050): _text("DS", "3000"), (0x28, 0x1051): _text("DS", "2500")},
        **{(0x28, 0x1055): _text("LO", "BONE"), (0x28, 0x1056): _text("CS", "LINEAR")},
    }
    padded = ramp.copy()
    padded[:3] = 60_000
    rgb = np.stack([ramp >> 4, ramp.T.reshape(_SHAPE) >> 5, 255 - (ramp >> 4)], -1).astype(np.uint8)
    shallow: Elements = {(0x28, 0x100): _us(8), (0x28, 0x101): _us(8), (0x28, 0x102): _us(7)}
    palette: Elements = {(0x28, 0x04): _text("CS", "PALETTE COLOR")}
    for place in (1, 2, 3):
        curve = np.roll(np.arange(256), 50 * place).astype("<u2") * 257
        palette[0x28, 0x1100 + place] = _us(256, 0, 16)
        palette[0x28, 0x1200 + place] = b"OW", curve.tobytes()
    bytes_ = (b"OB", (ramp >> 4).astype(np.uint8).tobytes())
    inverted = {(0x28, 0x04): _text("CS", "MONOCHROME1"), (0x2050, 0x20): _text("CS", "INVERSE")}
    return {
        "window": base | window,
        "inverted": base | window | inverted,
        "sigmoid": base | window | {(0x28, 0x1056): _text("CS", "SIGMOID")},
        "tables": base
        | {(0x28, 0x3000): _table(np.arange(4096) * 15), (0x28, 0x3010): _table(np.arange(60_000))},
        "padding": base
        | {(0x28, 0x120): _us(60_000), (0x28, 0x121): _us(61_000), (0x28, 0x101): _us(16)}
        | {(0x28, 0x102): _us(15), (0x7FE0, 0x10): (b"OW", padded.tobytes())},
        "bytes": base | shallow | {(0x7FE0, 0x10): bytes_}
        | {(0x28, 0x1052): _text("DS", "0"), (0x28, 0x1053): _text("DS", "1")},
        "colours": base | shallow
        | {(0x28, 0x02): _us(3), (0x28, 0x04): _text("CS", "RGB"), (0x28, 0x06): _us(0)}
        | {(0x7FE0, 0x10): (b"OB", rgb.tobytes())},
        "palette": base | shallow | palette | {(0x7FE0, 0x10): bytes_},
    }  # fmt: skip


_ABSURD = {
    b"US": (b"\xff\xff", b"\0\0", b"\x01\x00", b"\x08\x00", b"\x1f\x00"),
    b"DS": (b"1e400 ", b"-5", b"abc ", b"0 ", b"1e-30 ", b"nan "),
    b"IS": (b"-1", b"abc ", b"99999999999 ", b"2 ", b"0 "),
    b"CS": (b"NONSENSE", b"\xff\xfe", b"INVERSE ", b"MONOCHROME1 ", b"YBR_FULL", b"LINEAR_EXACT"),
    b"UI": (b"1.2.840.10008.1.2\0", b"1.2.840.10008.1.2.2\0", b"1.2.840.10008.1.2.4.70", b"x\0",
            b"1.2.840.10008.1.2.5\0", b"1.2.840.10008.1.2.1.99"),
}  # fmt: skip
_OTHER_VR = (b"US", b"SS", b"DS", b"LO", b"UN", b"OB", b"SQ", b"FD", b"UL")


def _damaged(elements: Elements, tag: tuple[int, int], how: str, draw: random.Random) -> Elements:
    vr, value = elements[tag]
    if how == "missing":
        return {key: element for key, element in elements.items() if key != tag}
    absurd = _ABSURD.get(vr, (b"\xff" * 8, b"\0\0", value[: len(value) // 2]))
    changed = {
        "empty": (vr, b""),
        "two values": (vr, value + (value if vr in (*_LONG, b"US") else b"\\" + value)),
        "another VR": (draw.choice([other for other in _OTHER_VR if other != vr]), value),
        "absurd": (vr, draw.choice(absurd)),
    }[how]
    return elements | {tag: changed}


def _file(elements: Elements, twice: tuple[int, int] | None, draw: random.Random) -> bytes:
    meta = {tag: element for tag, element in elements.items() if tag[0] == 2}
    data = {tag: element for tag, element in elements.items() if tag[0] != 2}
    body = _encode(data)
    if twice in data:
        vr, value = data[twice]
        second = draw.choice([value, value[::-1], _ABSURD.get(vr, (value,))[0]])
        before = _encode({tag: element for tag, element in data.items() if tag <= twice})
        body = before + _encode({twice: (vr, second)}) + body[len(before) :]
    header = _encode(meta)
    length = _encode({(2, 0): (b"UL", struct.pack("<I", len(header)))})
    return bytes(128) + b"DICM" + length + header + body


def dicom_files() -> dict[str, bytes]:
    """Sound files, native and compressed, by kind."""
    files = {kind: _file(elements, None, random.Random(0)) for kind, elements in _kinds().items()}
    dataset = pydicom.dcmread(io.BytesIO(files["window"]))
    values = dataset.pixel_array
    for syntax, frame in {
        uid.JPEGLosslessSV1: imagecodecs.jpeg8_encode(values, bitspersample=12, lossless=True),
        uid.JPEGExtended12Bit: imagecodecs.jpeg8_encode(values, bitspersample=12),
        uid.JPEGLSLossless: imagecodecs.jpegls_encode(values),
        uid.JPEG2000Lossless: imagecodecs.jpeg2k_encode(values, codecformat="j2k"),
        uid.HTJ2KLossless: imagecodecs.htj2k_encode(values),
    }.items():
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.PixelData = encapsulate([frame])
        dataset["PixelData"].VR = "OB"
        file = io.BytesIO()
        dataset.save_as(file)
        files[syntax.keyword] = file.getvalue()
    return files


def dicom_elements(folder: Path) -> Callable[[random.Random], tuple[str, Callable[[], str]]]:
    """DICOM files with one damaged element. Accepted: the very picture that pydicom makes."""
    folder.mkdir(parents=True)
    kinds = _kinds()
    damages = ("missing", "empty", "twice", "two values", "another VR", "absurd")
    tags = sorted(set().union(*kinds.values()))
    plan = [
        (kind, tag, how)
        for kind, tag, how in itertools.product(kinds, tags, damages)
        if tag in kinds[kind]
    ]
    random.Random(1).shuffle(plan)
    cases = itertools.cycle(plan)

    def make(draw: random.Random) -> tuple[str, Callable[[], str]]:
        kind, tag, how = next(cases)
        elements = kinds[kind] if how == "twice" else _damaged(kinds[kind], tag, how, draw)
        data = _file(elements, tag if how == "twice" else None, draw)

        def call() -> str:
            image, said = read_radiograph(data, "damaged.dcm")
            return _difference(image, said, data)

        return f"{kind}: ({tag[0]:04x},{tag[1]:04x}) {how}", call

    return make


def _difference(image: np.ndarray, said: tuple[str, ...], data: bytes) -> str:
    """Returns how a picture differs from pydicom's, "" if by rounding alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            expected = _by_pydicom(data, said)
        except Exception as error:
            return f"accepted, but pydicom raises {type(error).__name__}: {error}"
    if expected.shape != image.shape:
        return f"shape {image.shape}, pydicom's is {expected.shape}"
    worst = float(np.abs(np.clip(expected, 0, 255) - image).max())
    return f"differs from pydicom by {worst:.1f}" if worst > 1.01 else ""


def _by_pydicom(data: bytes, said: tuple[str, ...]) -> np.ndarray:
    """Values of pydicom's own functions in 0..255; where it shows nothing, a note must say so."""
    dataset = pydicom.dcmread(io.BytesIO(data), force=True)
    if not dataset.file_meta.get("TransferSyntaxUID"):
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    stored = dataset.pixel_array
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        stored = apply_color_lut(stored, dataset) / 257.0
    if stored.ndim == 3:
        return stored @ [0.299, 0.587, 0.114]
    values = apply_modality_lut(stored, dataset).astype(np.float64)
    inverse = dataset.get("PresentationLUTShape") == "INVERSE"
    inverse |= dataset.PhotometricInterpretation == "MONOCHROME1"
    padding = np.zeros(stored.shape, bool)
    if notes.PADDED in said:
        limit = dataset.get("PixelPaddingRangeLimit")
        first = dataset.PixelPaddingValue % 65536
        last = limit % 65536 if isinstance(limit, int) else first
        words = stored.astype(np.int64) % 65536
        padding = (words >= min(first, last)) & (words <= max(first, last))
    grey = None if notes.UNUSABLE_WINDOW in said else _by_window(dataset, values)
    if grey is None:
        grey = values
        if notes.NO_WINDOW in said:
            black, white = np.percentile(values[~padding], (0.1, 99.9))
            grey = np.clip((values - black) / (white - black or 1), 0, 1) * 255
    if inverse:
        shown = np.clip(grey[~padding], 0, 255)
        grey = shown.min() + shown.max() - np.clip(grey, 0, 255)
    return np.where(padding, 0, grey)


def _by_window(dataset: pydicom.Dataset, values: np.ndarray) -> np.ndarray | None:
    if dataset.get("VOILUTSequence"):
        bits = dataset.VOILUTSequence[0].LUTDescriptor[2]
        return apply_voi_lut(values.astype(np.int64), dataset) / (2**bits - 1) * 255
    if "WindowCenter" not in dataset and "WindowWidth" not in dataset:
        return None
    if dataset.WindowCenter is None and dataset.WindowWidth is None:
        return None  # there, and empty
    if not dataset.get("VOILUTFunction", "LINEAR"):
        del dataset.VOILUTFunction  # empty: the default
    with np.errstate(over="ignore"):
        low, high = apply_windowing(np.array([-1e7, 1e7]), dataset)
        return (apply_voi_lut(values, dataset) - low) / (high - low) * 255

"""Reads single-frame DICOM images: parses and decodes; `dicom_display` makes grey of the values."""

import contextlib
import io
import itertools
import struct
import zlib

import numpy as np
import pydicom
from pydicom import uid
from pydicom.encaps import generate_frames
from pydicom.filereader import read_dataset, read_preamble
from pydicom.pixels import get_decoder, pixel_array

from boneage_jax.data import dicom_codecs, notes
from boneage_jax.data.dicom_display import COLOURS, MONOCHROME, show_colours, show_grey
from boneage_jax.data.headers import MAX_PIXELS, check_jpeg, check_size, most_pixels
from boneage_jax.data.silence import warnings_off

_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
# Objects that belong to radiographs, by Modality; predict --dicom_out writes the first two.
_NO_RADIOGRAPHS = {
    **{"SEG": "a segmentation", "SR": "a report", "PR": "a presentation state"},
    **{"KO": "a selection of keys", "DOC": "a document"},
}
# In this order, not in pydicom's, which begins with GDCM (see dicom_codecs). Pillow comes before
# imagecodecs, so that the extra changes no pixel of what is read without it.
_DECODERS = ("pydicom", "pillow", "imagecodecs")
_MAX_INFLATED, _PIECE = 1 << 30, 1 << 26  # bytes
MAKER = "boneage_jax"  # of DICOM objects
_SIZ = b"\xff\x4f\xff\x51"  # the first two markers of a JPEG 2000 codestream

for _syntax in dicom_codecs.DECODER_DEPENDENCIES:
    with contextlib.suppress(ValueError):  # there already
        get_decoder(_syntax).add_plugin("imagecodecs", (dicom_codecs.__name__, "decode_frame"))


def read_dicom(
    data: bytes, *, max_inflated: int = _MAX_INFLATED
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Reads a file of one frame as it is meant to be displayed.

    Args:
      data: content of the file; preamble and meta header may be missing.
      max_inflated: largest size of a deflated data set, bytes; less where `pixel_limit` is lower.

    Returns:
      (uint8 [H, W], notes of `boneage_jax.data.notes`).

    Raises:
      ValueError: not DICOM, no pixels, several frames, too large, damaged, of a kind that is not
        supported, or compressed in a way that no installed decoder supports.
    """
    with warnings_off():  # radiographs violate the standard in harmless ways
        try:
            check_inflated(data, max_inflated * most_pixels() // MAX_PIXELS)
            dataset = _parse(data)
            _check(dataset)
            pixels, said = _decode(dataset)
            show = show_grey if dataset.PhotometricInterpretation in MONOCHROME else show_colours
            image, more = show(dataset, pixels)
            more += _oblong(dataset)
        except (ValueError, MemoryError):
            raise
        except Exception as error:  # pydicom raises many types on damaged elements
            raise ValueError(f"the DICOM file is damaged: {_line(error)}") from error
    return image, (*said, *more)


def _parse(data: bytes) -> pydicom.FileDataset:
    """Parses the file, and names its transfer syntax where the file does not."""
    try:
        dataset = pydicom.dcmread(io.BytesIO(data), force=True)
    except Exception as error:
        raise ValueError(f"it is not a readable DICOM file: {_line(error)}") from error
    if not dataset.file_meta.get("TransferSyntaxUID"):
        implicit, little = dataset.original_encoding
        explicit = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if implicit else explicit
    return dataset


def check_inflated(data: bytes, most: int = _MAX_INFLATED) -> None:
    """Checks the size of a deflated data set, which pydicom inflates without limit.

    Args:
      data: content of the file.
      most: largest size, bytes.

    Raises:
      ValueError: it is larger, or damaged.
    """
    file = io.BytesIO(data)
    read_preamble(file, force=True)
    try:
        meta = read_dataset(file, False, True, stop_when=lambda tag, *_: tag.group != 2)
        deflated = meta.get("TransferSyntaxUID") == uid.DeflatedExplicitVRLittleEndian
    except Exception:  # nothing that dcmread would inflate, or it raises the same
        return
    if not deflated:
        return
    engine, rest, inflated = zlib.decompressobj(-zlib.MAX_WBITS), file.read(), 0
    while rest:
        try:
            inflated += len(engine.decompress(rest, _PIECE))
        except zlib.error as error:
            raise ValueError(f"the deflated DICOM file is damaged: {error}") from error
        if inflated > most:
            raise ValueError(
                f"the deflated DICOM file inflates to more than {most / 2**30:.3g} GiB"
            )
        rest = engine.unconsumed_tail


def _check(dataset: pydicom.Dataset) -> None:
    """Checks that the file holds one frame of a supported kind and size."""
    if dataset.get("Manufacturer") == MAKER and "ConversionType" in dataset:
        raise ValueError(
            "the DICOM file is a picture that predict --dicom_out made of a radiograph"
        )
    if (kind := dataset.get("Modality")) in _NO_RADIOGRAPHS:
        raise ValueError(f"the DICOM file is {_NO_RADIOGRAPHS[kind]}, not a radiograph")
    if not any(dataset.get(name) for name in _PIXELS):
        raise ValueError("the DICOM file holds no image, or is cut short")
    frames = _integer(dataset, "NumberOfFrames") or 1  # old files say 0 of one frame
    if frames != 1:
        raise ValueError(f"the DICOM file holds {frames} frames; one radiograph is one frame")
    check_size(_integer(dataset, "Columns"), _integer(dataset, "Rows"))
    photometric = dataset.get("PhotometricInterpretation")
    if photometric not in (*MONOCHROME, *COLOURS):
        raise ValueError(f"photometric interpretation {photometric!s:.40} is not supported")
    samples, bits = (_integer(dataset, name) for name in ("SamplesPerPixel", "BitsAllocated"))
    if samples != (1 if photometric in (*MONOCHROME, "PALETTE COLOR") else 3) or bits > 64:
        raise ValueError(
            f"the DICOM file is damaged: {photometric} of {samples} samples of {bits} bits"
        )


def _integer(dataset: pydicom.Dataset, name: str, default: int = 0) -> int:
    value = dataset.get(name)
    try:
        return default if value in (None, "") else int(value)
    except (TypeError, ValueError):
        raise ValueError(f"the DICOM file is damaged: {name} is {value!s:.40}") from None


def _decode(dataset: pydicom.FileDataset) -> tuple[np.ndarray, list[str]]:
    """Returns the stored values, [H, W] or [H, W, 3] RGB, and notes."""
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        if syntax.is_encapsulated:
            _check_frame(dataset, syntax)
            pixels = _decompress(dataset, syntax)
            beyond = pixels.dtype.kind == "u" and int(pixels.max()) >> dataset.BitsStored > 0
            return pixels, [notes.BITS] * beyond
        if "PixelData" in dataset and dataset["PixelData"].is_undefined_length:
            raise ValueError("the file does not say how they are compressed")
        pixels = pixel_array(dataset)
        if pixels.ndim > 2 + (dataset.SamplesPerPixel > 1):
            raise ValueError("they are those of several frames, or of a larger one")
        return pixels, [*_check_bits(dataset, pixels), *_excess(dataset)]
    except MemoryError:
        raise
    except Exception as error:
        remedy = "" if dicom_codecs.EXTRA in str(error) else "; convert the file to PNG"
        raise ValueError(
            f"the DICOM pixels ({syntax.name}) cannot be decoded: {_line(error)}{remedy}"
        ) from error


def _decompress(dataset: pydicom.FileDataset, syntax: uid.UID) -> np.ndarray:
    """Decodes with the first decoder that can."""
    if dataset.SamplesPerPixel > 1 and syntax != uid.RLELossless:
        dataset.PlanarConfiguration = 0  # decoders say so; the header may not (PS3.5, 8.2)
    reason = f"the decoder comes with pip install '{dicom_codecs.EXTRA}'"
    for decoder in _DECODERS:
        if decoder in get_decoder(syntax).available_plugins:
            try:
                return pixel_array(dataset, decoding_plugin=decoder, allow_excess_frames=False)
            except MemoryError:
                raise
            except Exception as error:
                if "Pillow" not in str(error):  # else a kind that it knows it cannot decode
                    reason = _line(error)
    raise ValueError(reason)


def _check_frame(dataset: pydicom.FileDataset, syntax: uid.UID) -> None:
    """Checks size and end of a compressed frame, which decoders believe before they allocate."""
    frame, *others = itertools.islice(generate_frames(dataset.PixelData, number_of_frames=1), 2)
    if others:
        raise ValueError("the DICOM file holds several frames; one radiograph is one frame")
    if syntax in uid.JPEGTransferSyntaxes + uid.JPEGLSTransferSyntaxes:
        jpeg = check_jpeg(frame)
        width, height = jpeg.width, jpeg.height
    elif syntax in uid.JPEG2000TransferSyntaxes and _SIZ in frame:
        right, bottom, left, top = struct.unpack_from(">4I", frame, frame.index(_SIZ) + 8)
        width, height = right - left, bottom - top
    else:
        return
    if (height, width) != (dataset.Rows, dataset.Columns):
        raise ValueError(
            f"the frame is {width} x {height} pixels, its header says "
            f"{dataset.Columns} x {dataset.Rows}"
        )


def _check_bits(dataset: pydicom.Dataset, pixels: np.ndarray) -> list[str]:
    """Checks which bits of a word are the value: pydicom takes the lower ones, whatever is said.

    Returns:
      A note if the others hold something, as an overlay or a wrong header does.
    """
    if pixels.dtype.kind not in "iu":
        return []
    stored, high = dataset.BitsStored, _integer(dataset, "HighBit", dataset.BitsStored - 1)
    agree = high == stored - 1
    if agree and (pixels.ndim > 2 or pixels.dtype.kind == "i"):  # a sign fills those above
        return []
    words = pixel_array(dataset, raw=True, correct_unused_bits=False, view_only=True)
    if np.array_equal(words, pixels if agree else pixel_array(dataset, raw=True)):
        return []
    if not agree:
        raise ValueError(f"High Bit {high} does not belong to Bits Stored {stored}")
    return [notes.BITS]


def _excess(dataset: pydicom.Dataset) -> list[str]:
    """Returns a note if there is more than a row of pixels too much: the size may be wrong."""
    samples = dataset.SamplesPerPixel
    if dataset.PhotometricInterpretation == "YBR_FULL_422":
        samples = 2
    bits = dataset.Columns * samples * dataset.BitsAllocated
    length = len(dataset.get("PixelData") or b"")
    return [notes.EXCESS] if length * 8 > bits * (dataset.Rows + 1) + 16 else []


def _oblong(dataset: pydicom.Dataset) -> list[str]:
    """Returns a note if pixels are higher or wider than the other way by more than a percent."""
    for name in ("PixelAspectRatio", "PixelSpacing", "ImagerPixelSpacing"):
        try:
            height, width = (float(number) for number in dataset.get(name) or ())
        except Exception:  # absent or damaged (of many types), which the pixels do not depend on
            continue
        if min(height, width) > 0 and not 0.99 < height / width < 1.01:
            return [notes.OBLONG]
    return []


def _line(error: Exception) -> str:
    """Returns the last line of an error, pydicom's cause, or its type where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__

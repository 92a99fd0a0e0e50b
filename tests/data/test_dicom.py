"""Reading DICOM: against pydicom's own tables, GDCM, and what the standard says."""

import io
import struct
import tracemalloc
import warnings
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pydicom.data
import pytest
from pydicom import uid
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_modality_lut, apply_voi_lut, apply_windowing

from boneage_jax.data import notes
from boneage_jax.data.dicom import read_dicom
from boneage_jax.data.files import UnreadableImage, read_grey, read_radiograph
from boneage_jax.data.headers import pixel_limit
from tests.support.dicom_files import (
    BYTES,
    COLOUR,
    DEEP,
    FULL,
    LUMA,
    RAMP,
    TWELVE,
    by_gdcm,
    dicom_file,
    table,
    window,
)


def read(data: bytes) -> tuple[np.ndarray, tuple[str, ...]]:
    """The picture and its notes but the one on its size."""
    image, said = read_radiograph(data)
    return image, tuple(note for note in said if note != notes.SMALL)


def as_pydicom_shows(data: bytes) -> np.ndarray:
    """Modality and VOI of pydicom, its output range mapped to 0..255."""
    dataset = pydicom.dcmread(io.BytesIO(data))
    values = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset)
    if "VOILUTSequence" in dataset:
        ends = 0, 2 ** dataset.VOILUTSequence[0].LUTDescriptor[2] - 1
    else:
        with np.errstate(over="ignore"):
            ends = apply_windowing(np.array([-1e6, 1e6]), dataset)
    return (values.astype(np.float64) - ends[0]) / (ends[1] - ends[0]) * 255


RESCALE = {"RescaleSlope": 2, "RescaleIntercept": -1024}


@pytest.mark.parametrize(
    ("image", "tags"),
    [
        (RAMP, TWELVE | window(2048, 1024)),
        (RAMP, TWELVE | window(2048, 1024, "LINEAR")),
        (RAMP, TWELVE | window(2048, 1024, "LINEAR_EXACT")),
        (RAMP, TWELVE | window(2048, 1024, "SIGMOID")),
        (RAMP, TWELVE | window(1000, 3000) | RESCALE),
        (RAMP, TWELVE | window(1000, 900, "SIGMOID") | RESCALE),
        (RAMP, TWELVE | window(2, 1.8, "LINEAR_EXACT", RescaleSlope="0.001", RescaleIntercept=0)),
        (RAMP, TWELVE | window([900, 2048], [1000, 10])),
        (RAMP.astype(np.int16) - 2048, {"BitsStored": 16} | window(-10, 2000)),
        (RAMP >> 2, {"BitsStored": 10} | window(512, 1024)),
        (BYTES, window(100, 90)),
        (RAMP, TWELVE | {"VOILUTSequence": [table(np.arange(4095, -1, -1), bits=12)]}),
        (RAMP, TWELVE | {"VOILUTSequence": [table(np.arange(3000) * 20, 500)]}),
        (RAMP, TWELVE | {"VOILUTSequence": [table(np.arange(100) * 600)]} | window(9, 99)),
        (RAMP, TWELVE | {"ModalityLUTSequence": [table(65535 - 9 * np.arange(4096))]}
         | window(40000, 30000)),
    ],
)  # fmt: skip
def test_windows_and_tables_are_those_of_pydicom(image, tags):
    data = dicom_file(image, **tags)
    shown, said = read(data)
    np.testing.assert_allclose(shown, as_pydicom_shows(data), atol=0.51)
    several = isinstance(tags.get("WindowCenter"), list)
    assert said == (notes.SEVERAL_WINDOWS,) * several


@pytest.mark.parametrize("entries", [bytes(range(255, -1, -1)) * 16, np.arange(4096) // 16])
def test_tables_of_8_bits_whether_packed_or_not(entries):
    data = dicom_file(RAMP, **TWELVE, VOILUTSequence=[table(entries, bits=8)])
    expected = np.frombuffer(entries, np.uint8) if isinstance(entries, bytes) else entries
    np.testing.assert_array_equal(read_grey(data), expected[RAMP])


def test_a_modality_table_of_12_bits_and_a_negative_first_value():
    signed = RAMP.astype(np.int16) - 2048
    lut = table(4095 - np.arange(4096), first=-2048, bits=12)
    data = dicom_file(signed, ModalityLUTSequence=[lut], **window(2048, 4096, "LINEAR_EXACT"))
    np.testing.assert_allclose(read_grey(data), (4095 - RAMP) / 4096 * 255, atol=0.51)


@pytest.mark.parametrize("shown_by", [{}, window(2048, 4096), window(2048, 900, "SIGMOID")])
@pytest.mark.parametrize(
    ("photometric", "shape", "inverted"),
    [
        ("MONOCHROME2", None, False),
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME2", "INVERSE", True),
        ("MONOCHROME1", None, True),
        ("MONOCHROME1", "INVERSE", True),  # said twice, inverted once
    ],
)
def test_inversion(photometric, shape, inverted, shown_by):
    tags = TWELVE | shown_by
    plain, said = read(dicom_file(RAMP, **tags))
    if shape:
        tags = tags | {"PresentationLUTShape": shape}
    shown, more = read(dicom_file(RAMP, **tags, PhotometricInterpretation=photometric))
    np.testing.assert_allclose(shown, 255.0 - plain if inverted else plain, atol=1)
    assert more == said + (notes.INVERTED,) * inverted


def test_inverted_bytes_are_mirrored_within_their_range():
    image = BYTES // 2 + 30
    data = dicom_file(image, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(read_grey(data), image.min() + image.max() - image)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    ("image", "tags"),
    [
        (RAMP.astype(np.int16), {"PixelPaddingValue": -32768}),
        (RAMP.astype(np.int16), {"PixelPaddingValue": -32768, "PixelPaddingRangeLimit": -32000}),
        (RAMP, {"PixelPaddingValue": 65535}),
        (RAMP, {"PixelPaddingValue": 65535} | window(2048, 4096)),
        (BYTES // 2, {"PixelPaddingValue": 250}),
    ],
)
def test_padding_is_black_and_outside_the_range(image, tags, photometric):
    padded = image.copy()
    padded[:4] = tags["PixelPaddingValue"]
    if "PixelPaddingRangeLimit" in tags:
        padded[2] = -32100
    clean = dicom_file(image[4:], PhotometricInterpretation=photometric, **tags)
    shown, said = read(dicom_file(padded, PhotometricInterpretation=photometric, **tags))
    np.testing.assert_array_equal(shown[4:], read_grey(clean))
    assert (shown[:4] == 0).all() and notes.PADDED in said


def test_padding_alone_is_no_radiograph():
    with pytest.raises(UnreadableImage, match="padding"):
        read(dicom_file(np.full((9, 9), 7, np.uint16), PixelPaddingValue=7))


@pytest.mark.parametrize("slope", ["1", "0.001", "0.03", "17.5"])
def test_the_slope_does_not_matter_without_a_window(slope):
    image, said = read(dicom_file(RAMP, **TWELVE, RescaleSlope=slope, RescaleIntercept=0))
    np.testing.assert_allclose(image, by_range(RAMP), atol=0.51)
    assert said == (notes.NO_WINDOW,)


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        (window(90_000, 9), (notes.UNUSABLE_WINDOW, notes.NO_WINDOW)),
        (window(2048, 0), (notes.UNUSABLE_WINDOW, notes.NO_WINDOW)),
        (window(2048, 99, "CUBIC"), (notes.UNUSABLE_WINDOW, notes.NO_WINDOW)),
        ({"WindowWidth": 99}, (notes.UNUSABLE_WINDOW, notes.NO_WINDOW)),
        ({"VOILUTSequence": [table([5] * 9)]}, (notes.UNUSABLE_WINDOW, notes.NO_WINDOW)),
        ({}, (notes.NO_WINDOW,)),
    ],
)
def test_a_window_that_shows_nothing_is_said(tags, said):
    image, found = read(dicom_file(RAMP, **TWELVE, **tags))
    assert found == said and image.min() == 0 and image.max() == 255


@pytest.mark.parametrize(
    ("image", "tags"),
    [
        (BYTES, window(2048, 4096)),  # that of 12 bits before a lossy compression
        (RAMP, TWELVE | window(2048, 20)),
        (RAMP, TWELVE | {"VOILUTSequence": [table(np.arange(4096))]}),
    ],
)
def test_a_window_that_leaves_few_grey_levels_is_used_and_said(image, tags):
    data = dicom_file(image, **tags)
    shown, said = read(data)
    np.testing.assert_allclose(shown, as_pydicom_shows(data).clip(0, 255), atol=0.51)
    assert said == (notes.FEW_LEVELS,)
    two = np.where(BYTES > 99, 200, 0).astype(np.uint8)  # has no more to begin with
    assert read(dicom_file(two, **window(128, 256)))[1] == ()


def test_pixels_that_are_not_square_are_said():
    for tags, said in (
        ({"PixelAspectRatio": [2, 1]}, (notes.OBLONG,)),
        ({"PixelSpacing": [0.1, 0.2]}, (notes.OBLONG,)),
        ({"PixelAspectRatio": [1, 1], "ImagerPixelSpacing": [0.1, 0.1]}, ()),
        ({"PixelAspectRatio": [0, 1], "PixelSpacing": []}, ()),
    ):
        image, found = read(dicom_file(BYTES, **tags))
        np.testing.assert_array_equal(image, BYTES)
        assert found == said


def test_bits_above_those_stored_are_said():
    high = RAMP | np.where(BYTES > 99, 0x8000, 0).astype(np.uint16)  # as an overlay in bit 15
    native = dicom_file(high, **DEEP)
    np.testing.assert_array_equal(read_grey(native), read_grey(dicom_file(RAMP, **DEEP)))
    assert read(native)[1] == (notes.BITS,)


def test_bits():
    np.testing.assert_array_equal(read_grey(dicom_file(BYTES)), BYTES)
    four = read_grey(dicom_file(BYTES >> 4, BitsStored=4))
    np.testing.assert_allclose(four, (BYTES >> 4) * 17, atol=0.51)
    overlay = RAMP | np.where(RAMP % 7 == 0, 0x8000, 0).astype(np.uint16)  # in an unused bit
    np.testing.assert_allclose(read_grey(dicom_file(overlay, **DEEP)), FULL, atol=0.51)
    careless = dicom_file(RAMP, **DEEP, HighBit=15)
    np.testing.assert_allclose(read_grey(careless), FULL, atol=0.51)
    with pytest.raises(UnreadableImage, match="High Bit 15 does not belong to Bits Stored 12"):
        read_grey(dicom_file(RAMP << 4, **DEEP, HighBit=15))


@pytest.mark.parametrize(("kind", "name"), [("f4", "Float"), ("f8", "DoubleFloat")])
def test_float_pixels(kind, name):
    values = (RAMP / 7).astype(kind)
    tags = dict.fromkeys(("PixelData", "BitsStored", "HighBit", "PixelRepresentation"))
    tags |= {f"{name}PixelData": values.tobytes(), "BitsAllocated": 8 * values.itemsize}
    np.testing.assert_allclose(read_grey(dicom_file(RAMP, **tags)), by_range(values), atol=0.51)


def test_overlays_are_ignored():
    data = pydicom.dcmread(io.BytesIO(dicom_file(BYTES)))
    data.add_new(0x60000010, "US", 64)
    data.add_new(0x60000011, "US", 48)
    data.add_new(0x60003000, "OW", b"\xff" * (64 * 48 // 8))
    file = io.BytesIO()
    data.save_as(file)
    np.testing.assert_array_equal(read_grey(file.getvalue()), BYTES)


def test_colours():
    np.testing.assert_allclose(read_grey(dicom_file(COLOUR)), LUMA, atol=0.51)
    planes = COLOUR.transpose(2, 0, 1).tobytes()
    planar = dicom_file(COLOUR, PlanarConfiguration=1, PixelData=planes)
    np.testing.assert_allclose(read_grey(planar), LUMA, atol=0.51)
    grey = np.stack([BYTES, np.full_like(BYTES, 128), np.full_like(BYTES, 128)], -1)
    ybr = dicom_file(grey, PhotometricInterpretation="YBR_FULL")
    np.testing.assert_allclose(read_grey(ybr), BYTES, atol=1)
    half = np.stack([BYTES[:, ::2], BYTES[:, 1::2], *[np.full_like(BYTES[:, ::2], 128)] * 2], -1)
    tags = {"PhotometricInterpretation": "YBR_FULL_422", "PixelData": half.tobytes()}
    np.testing.assert_allclose(read_grey(dicom_file(COLOUR, **tags)), BYTES, atol=1)


@pytest.mark.parametrize(("bits", "kind"), [(8, "u1"), (8, "<u2"), (16, "<u2")])
def test_palette(bits, kind):
    rising, falling = np.arange(256), np.arange(255, -1, -1)
    curves = {"Red": rising, "Green": falling, "Blue": rising}
    tags = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, curve in curves.items():
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, bits]
        words = curve * 257 if bits == 16 else curve
        tags[f"{name}PaletteColorLookupTableData"] = words.astype(kind).tobytes()
    expected = np.stack([curve[BYTES] for curve in curves.values()], -1) @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(read_grey(dicom_file(BYTES, **tags)), expected, atol=0.51)


def test_frames():
    for number in (1, 0, ""):
        data = dicom_file(BYTES, NumberOfFrames=number)
        np.testing.assert_array_equal(read_grey(data), BYTES)
        with warnings.catch_warnings():  # that it takes 0 for 1
            warnings.simplefilter("ignore")
            assert pydicom.dcmread(io.BytesIO(data)).pixel_array.shape == BYTES.shape
    twice = {"PixelData": BYTES.tobytes() * 2}
    with pytest.raises(UnreadableImage, match="holds 2 frames"):
        read_grey(dicom_file(BYTES, NumberOfFrames=2, **twice))
    with pytest.raises(UnreadableImage, match="several frames, or of a larger one"):
        read_grey(dicom_file(BYTES, **twice))
    frame = imagecodecs.jpeg8_encode(BYTES)
    with pytest.raises(UnreadableImage, match="several frames"):
        read_grey(dicom_file(BYTES, uid.JPEGBaseline8Bit, PixelData=encapsulate([frame, frame])))
    image, said = read(dicom_file(BYTES, PixelData=BYTES.tobytes() + bytes(100)))
    np.testing.assert_array_equal(image, BYTES)
    assert said == (notes.EXCESS,)


def test_an_enhanced_object_keeps_slope_and_window_by_frame():
    voi, values, shared, frame = (pydicom.Dataset() for _ in range(4))
    voi.WindowCenter, voi.WindowWidth = 3000, 2000
    values.RescaleSlope, values.RescaleIntercept = 2, -1024
    shared.PixelValueTransformationSequence, frame.FrameVOILUTSequence = [values], [voi]
    groups = {
        "SharedFunctionalGroupsSequence": [shared],
        "PerFrameFunctionalGroupsSequence": [frame],
    }
    plain = dicom_file(RAMP, **TWELVE, **RESCALE, **window(3000, 2000))
    np.testing.assert_array_equal(read_grey(dicom_file(RAMP, **TWELVE, **groups)), read_grey(plain))


@pytest.mark.parametrize("start", ["whole", "no preamble", "no meta header"])
@pytest.mark.parametrize(
    "syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian]
)
def test_encodings_with_and_without_their_headers(syntax, start):
    data = dicom_file(RAMP, syntax, **DEEP)
    (meta,) = struct.unpack_from("<I", data, 140)
    cut = {"whole": 0, "no preamble": 132, "no meta header": 144 + meta}[start]
    np.testing.assert_allclose(read_grey(data[cut:]), FULL, atol=0.51)


def test_a_deflated_file_and_one_that_inflates_without_end():
    data = dicom_file(RAMP, uid.DeflatedExplicitVRLittleEndian, **DEEP)
    np.testing.assert_allclose(read_grey(data), FULL, atol=0.51)
    (meta,) = struct.unpack_from("<I", data, 140)
    engine = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    # A full flush forgets what came before, so that the same bytes give the next mebibyte as well.
    mebibyte = engine.compress(bytes(1 << 20)) + engine.flush(zlib.Z_FULL_FLUSH)
    bomb = data[: 144 + meta] + 1024 * mebibyte
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"inflates to more than 0\.125 GiB"):
            read_dicom(bomb, max_inflated=1 << 27)
        with pixel_limit(10_000_000), pytest.raises(ValueError, match=r"more than 0\.1 GiB"):
            read_dicom(bomb)
        assert tracemalloc.get_traced_memory()[1] < 1 << 28  # counted piece by piece, not kept
    finally:
        tracemalloc.stop()


def test_a_tiff_header_in_the_preamble_decides_nothing():
    data = dicom_file(RAMP, **DEEP)
    dual = b"II*\0" + struct.pack("<I", 8) + data[8:]
    np.testing.assert_array_equal(read_grey(dual), read_grey(data))


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"Rows": 60_000, "Columns": 60_000}, "60000 x 60000"),
        ({"Rows": 0}, "no pixels"),
        ({"Modality": "SEG"}, "is a segmentation, not a radiograph"),
        ({"PhotometricInterpretation": "HSV"}, "'?HSV'? is not supported"),
        ({"PhotometricInterpretation": "RGB"}, "RGB of 1 samples"),
        ({"BitsAllocated": None}, "of 0 bits|BitsAllocated|cannot be decoded"),
        ({"RescaleSlope": "1e400", "RescaleIntercept": 0}, "not finite"),
        ({"PixelData": b"\0" * 10}, "cannot be decoded"),
        ({"RescaleSlope": "", "RescaleIntercept": 0}, "Slope or Intercept is empty"),
        ({"PresentationLUTSequence": [table([1, 2])]}, "Presentation LUT Sequence"),
    ],
)
def test_what_cannot_be_read_is_refused_in_a_line(tags, reason):
    with pytest.raises(UnreadableImage, match=reason) as caught:
        read_grey(dicom_file(RAMP, **tags), "x.dcm")
    assert "\n" not in str(caught.value)


def test_a_transfer_syntax_that_is_not_known_is_named():
    data = dicom_file(BYTES).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.99999.1.2.1\0")
    with pytest.raises(UnreadableImage, match=r"pixels \(1\.2\.840\.99999\.1\.2\.1\) cannot"):
        read_grey(data)


SAMPLES = Path(pydicom.data.__file__).parent / "test_files"


@pytest.mark.parametrize(
    "name",
    [
        *("CT_small.dcm", "693_J2KI.dcm", "J2K_pixelrep_mismatch.dcm", "MR_small_bigendian.dcm"),
        *("MR_small_jpeg_ls_lossless.dcm", "MR_small_expb.dcm", "MR_small_padded.dcm"),
        *("image_dfl.dcm", "JPGExtended.dcm", "JPEGLSNearLossless_08.dcm"),
        *("SC_rgb_jpeg_gdcm.dcm", "SC_rgb_rle.dcm", "SC_ybr_full_422_uncompressed.dcm"),
        *("SC_rgb_dcmtk_+eb+cy+s2.dcm", "SC_jpeg_no_color_transform.dcm", "ExplVR_BigEnd.dcm"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # pydicom's, on its own samples
def test_samples_that_come_with_pydicom(name):
    dataset = pydicom.dcmread(SAMPLES / name)
    image, said = read(SAMPLES / name)
    shown = image > 0 if notes.PADDED in said else np.ones(image.shape, bool)
    if "WindowWidth" in dataset:
        expected = np.clip(as_pydicom_shows((SAMPLES / name).read_bytes()), 0, 255)
    elif dataset.file_meta.TransferSyntaxUID == uid.JPEGExtended12Bit:
        expected = by_range(by_gdcm(SAMPLES / name))  # pydicom has no decoder for it
    elif dataset.SamplesPerPixel == 3:
        expected = dataset.pixel_array @ [0.299, 0.587, 0.114]
    else:
        expected = by_range(dataset.pixel_array) if notes.NO_WINDOW in said else dataset.pixel_array
    np.testing.assert_allclose(image[shown], expected[shown], atol=1.01)


def by_range(values: np.ndarray) -> np.ndarray:
    black, white = np.percentile(values, (0.1, 99.9))
    return np.clip((values - black) / (white - black), 0, 1) * 255

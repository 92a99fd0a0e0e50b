"""Reading radiographs: against Pillow and pydicom, and against damaged files."""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit

from boneage_jax.data.files import UnreadableImage, fit_square, read_grey


def picture(height: int = 40, width: int = 30, dtype=np.uint8, high: int = 256) -> np.ndarray:
    return np.random.default_rng(0).integers(0, high, (height, width)).astype(dtype)


def encode(image: np.ndarray, form: str, mode: str | None = None, **options) -> bytes:
    file = io.BytesIO()
    picture = Image.fromarray(image)
    (picture.convert(mode) if mode else picture).save(file, form, **options)
    return file.getvalue()


def dicom(image: np.ndarray, syntax: str = ExplicitVRLittleEndian, **tags) -> bytes:
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    data.Rows, data.Columns = image.shape[:2]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = image.dtype.itemsize * 8
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, 0
    data.PixelData = image.tobytes()
    data["PixelData"].VR = "OW"
    for key, value in tags.items():
        setattr(data, key, value)
    file = io.BytesIO()
    data.save_as(file, enforce_file_format=True)
    return file.getvalue()


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_lossless_grey_is_kept(form):
    np.testing.assert_array_equal(read_grey(encode(picture(), form)), picture())


def test_a_file_is_read_by_any_kind_of_path(tmp_path):
    (tmp_path / "hand.png").write_bytes(encode(picture(), "PNG"))
    for path in (tmp_path / "hand.png", str(tmp_path / "hand.png")):
        np.testing.assert_array_equal(read_grey(path), picture())
    with pytest.raises(UnreadableImage, match=f"^{tmp_path}/none.png: No such file"):
        read_grey(str(tmp_path / "none.png"))


def test_jpeg_is_what_pillow_decodes():
    data = encode(picture(), "JPEG", quality=95)
    expected = np.asarray(Image.open(io.BytesIO(data)), np.int16)
    assert np.abs(read_grey(data).astype(np.int16) - expected).max() <= 1


def test_jpeg_rotation_is_applied():
    smooth = np.tile(np.arange(0, 240, 6, dtype=np.uint8), (24, 1))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    turned = read_grey(encode(smooth, "JPEG", quality=95, exif=exif))
    assert np.abs(turned.astype(int) - np.rot90(smooth, -1)).max() < 8


def test_colour_becomes_luma_and_alpha_lies_on_black():
    colour = np.random.default_rng(1).integers(0, 256, (9, 7, 4), dtype=np.uint8)
    luma = colour[..., :3] @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(read_grey(encode(colour[..., :3], "PNG")), luma, atol=1)
    over_black = luma * colour[..., 3] / 255
    np.testing.assert_allclose(read_grey(encode(colour, "PNG")), over_black, atol=1)


def test_palette_and_one_bit_png():
    steps = np.repeat(np.arange(4, dtype=np.uint8) * 80, 10).reshape(4, 10)
    np.testing.assert_array_equal(read_grey(encode(steps, "PNG", mode="P")), steps)
    mask = picture() > 128
    np.testing.assert_array_equal(read_grey(encode(mask, "PNG")), mask * 255)


def test_16_bit_keeps_8_bit_values_and_scales_deeper_ones():
    shallow = picture(dtype=np.uint16)
    np.testing.assert_array_equal(read_grey(encode(shallow, "PNG")), shallow)
    deep = np.linspace(1000, 5000, 10_000).astype(np.uint16).reshape(100, 100)
    deep[0, 0] = 65535  # one burnt-in pixel must not darken the rest
    black, white = np.percentile(deep, (0.1, 99.9))
    expected = np.clip((deep - black) / (white - black), 0, 1) * 255
    np.testing.assert_allclose(read_grey(encode(deep, "PNG")), expected, atol=0.51)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF"])
def test_every_cut_is_refused(form):
    data = encode(picture(), form)
    for length in range(0, len(data), 7 if form == "PNG" else 1):
        with pytest.raises(UnreadableImage, match=r"hand\.png"):
            read_grey(data[:length], "hand.png")


def test_a_jpeg_cut_after_its_thumbnail_is_refused():
    data = encode(picture(), "JPEG")
    thumbnail = encode(picture(8, 8), "JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 8) + b"Exif\0\0" + thumbnail
    whole = data[:2] + segment + data[2:]
    assert read_grey(whole).shape == (40, 30)
    with pytest.raises(UnreadableImage, match="cut short"):
        read_grey(whole[:-40])


def test_a_damaged_png_is_refused():
    data = bytearray(encode(picture(), "PNG"))
    data[len(data) // 2] ^= 1
    with pytest.raises(UnreadableImage, match="checksum"):
        read_grey(bytes(data))


def png_claiming(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header
        + struct.pack(">I", zlib.crc32(header)) + b"\0\0\0\0IEND\xaeB`\x82"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"id,boneage,male\n1,2,True\n", "not PNG"),
        (png_claiming(60_000, 60_000), "60000 x 60000"),
        (png_claiming(0, 10), "no pixels"),
        (png_claiming(10, 10), "damaged"),
        (dicom(picture(), NumberOfFrames=2, PixelData=picture().tobytes() * 2), "2 frames"),
        (dicom(picture(), Rows=50_000, Columns=50_000), "50000 x 50000"),
        (dicom(picture())[:-100], "DICOM"),
    ],
)
def test_what_is_no_radiograph_is_refused(data, reason):
    with pytest.raises(UnreadableImage, match=reason) as caught:
        read_grey(data, "x.png")
    assert caught.value.name == "x.png"
    assert "\n" not in str(caught.value)


def test_compressed_dicom_that_cannot_be_decoded_is_refused():
    broken = pydicom.encaps.encapsulate([b"\xff\xd8no jpeg\xff\xd9"])
    with pytest.raises(UnreadableImage, match="cannot be decoded"):
        read_grey(dicom(picture(), JPEGBaseline8Bit, PixelData=broken))


def test_missing_file_and_folder_are_refused(tmp_path):
    for path in (tmp_path / "no.png", tmp_path):
        with pytest.raises(UnreadableImage, match=str(path)):
            read_grey(path)


def test_dicom_values_window_and_inversion():
    np.testing.assert_array_equal(read_grey(dicom(picture())), picture())
    deep = picture(dtype=np.uint16, high=4096)
    # PS3.3 C.11.2.1.2: ((x - (c - 0.5)) / (w - 1) + 0.5) * 255
    stored = {"RescaleSlope": 2, "RescaleIntercept": -100, "WindowCenter": [3000, 1]}
    window = dicom(deep, WindowWidth=[2001, 1], **stored)
    expected = np.clip((deep * 2.0 - 100 - 2999.5) / 2000 + 0.5, 0, 1) * 255
    np.testing.assert_allclose(read_grey(window), expected, atol=0.51)
    inverted = dicom(deep, WindowWidth=[2001, 1], PhotometricInterpretation="MONOCHROME1", **stored)
    np.testing.assert_allclose(read_grey(inverted), 255 - expected, atol=0.51)


def test_a_dicom_window_that_shows_nothing_is_ignored():
    image = read_grey(dicom(picture(dtype=np.uint16, high=4096), WindowCenter=9e4, WindowWidth=9))
    assert image.min() == 0 and image.max() == 255


def test_fit_square_shrinks_by_averaging_and_centres():
    image = picture(80, 40)
    square = fit_square(image, 40)
    blocks = image.reshape(40, 2, 20, 2).mean((1, 3))
    np.testing.assert_allclose(square[:, 10:30], blocks, atol=0.51)
    fill = np.median(square[:, [10, 29]])
    np.testing.assert_allclose(square[:, :10], fill, atol=0.5)
    np.testing.assert_allclose(square[:, 30:], fill, atol=0.5)


@pytest.mark.parametrize("shape", [(3, 1000), (1000, 3), (7, 7), (1, 1), (31, 17)])
def test_fit_square_of_any_shape(shape):
    square = fit_square(np.full(shape, 200, np.uint8), 16)
    assert square.shape == (16, 16) and square.dtype == np.uint8
    assert (square == 200).all()  # also the filling: no black bars on a bright background


def test_fit_square_turns_with_the_image():
    image = picture(60, 33)
    np.testing.assert_array_equal(fit_square(image.T, 32), fit_square(image, 32).T)


def test_errors_survive_a_process_boundary():
    import pickle

    error = pickle.loads(pickle.dumps(UnreadableImage("a.png", "cut short")))
    assert (error.name, str(error)) == ("a.png", "a.png: cut short")


def test_reading_does_not_load_jax():
    code = "import sys, boneage_jax.data.files, tfds_rsna.decode; print('jax' in sys.modules)"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr

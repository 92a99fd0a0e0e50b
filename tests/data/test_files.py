"""Reading radiographs: against Pillow and pydicom, and against damaged files."""

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from PIL import Image, ImageOps

from boneage_jax.data import notes
from boneage_jax.data.files import UnreadableImage, fit_square, read_grey, read_radiograph
from boneage_jax.data.headers import pixel_limit
from tests.support.dicom_files import dicom_file


def picture(height: int = 40, width: int = 30, dtype=np.uint8, high: int = 256) -> np.ndarray:
    return np.random.default_rng(0).integers(0, high, (height, width)).astype(dtype)


def encode(image: np.ndarray, form: str, mode: str | None = None, **options) -> bytes:
    file = io.BytesIO()
    picture = Image.fromarray(image)
    (picture.convert(mode) if mode else picture).save(file, form, **options)
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


@pytest.mark.parametrize("turn", range(1, 9))
def test_jpeg_rotation_is_that_of_pillow(turn):
    smooth = np.tile(np.arange(0, 240, 6, dtype=np.uint8), (24, 1))
    exif = Image.Exif()
    exif[0x0112] = turn
    data = encode(smooth, "JPEG", quality=95, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))), np.int16)
    assert np.abs(read_grey(data) - expected).max() <= 1


def test_jpeg_inks():
    smooth = np.tile(np.arange(0, 240, 6, dtype=np.uint8), (24, 1))
    data = encode(np.stack([smooth] * 3, -1), "JPEG", mode="CMYK", quality=95)
    np.testing.assert_allclose(read_grey(data), smooth, atol=3)


def test_kinds_of_jpeg_that_are_refused_by_name():
    deep = picture(dtype=np.uint16, high=4096)
    for data, reason in (
        (imagecodecs.jpeg8_encode(deep, bitspersample=12), "JPEG of 12 bits is not supported"),
        (imagecodecs.jpegls_encode(deep), "JPEG-LS is not supported"),
    ):
        with pytest.raises(UnreadableImage, match=reason):
            read_grey(data)


def test_colour_becomes_luma_and_alpha_lies_on_black():
    colour = np.random.default_rng(1).integers(0, 256, (9, 7, 4), dtype=np.uint8)
    luma = colour[..., :3] @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(read_grey(encode(colour[..., :3], "PNG")), luma, atol=1)
    over_black = luma * colour[..., 3] / 255
    np.testing.assert_allclose(read_grey(encode(colour, "PNG")), over_black, atol=1)


def png(
    image: np.ndarray, bits: int, kind: int = 0, chunks: tuple[tuple[bytes, bytes], ...] = ()
) -> bytes:
    """A PNG by the specification: grey (kind 0) or palette (3), bits per sample, other chunks."""

    def chunk(name: bytes, content: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + crc

    digits = (image[..., None].astype(np.int64) >> np.arange(bits)[::-1]) & 1
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in digits.reshape(len(image), -1))
    header = struct.pack(">IIBBBBB", image.shape[1], image.shape[0], bits, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*each)
        for each in (
            (b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b""),
        )
    )  # fmt: skip


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_png_of_few_bits_palettes_and_transparent_grey(bits):
    values = picture(high=2**bits)
    grey = values.astype(int) * (255 // (2**bits - 1))
    np.testing.assert_array_equal(read_grey(png(values, bits)), grey)
    clear = (b"tRNS", struct.pack(">H", 1))
    np.testing.assert_array_equal(read_grey(png(values, bits, 0, (clear,))), grey * (values != 1))
    colours = np.random.default_rng(2).integers(0, 256, (2**bits, 3), dtype=np.uint8)
    luma = (colours @ [0.299, 0.587, 0.114])[values]
    palette = (b"PLTE", colours.tobytes())
    np.testing.assert_allclose(read_grey(png(values, bits, 3, (palette,))), luma, atol=0.51)
    alpha = np.linspace(0, 255, 2**bits).astype(np.uint8)
    over_black = luma * alpha[values] / 255
    data = png(values, bits, 3, (palette, (b"tRNS", alpha.tobytes())))
    np.testing.assert_allclose(read_grey(data), over_black, atol=1.01)


def test_transparent_grey_of_16_bits():
    deep = picture(dtype=np.uint16, high=65536)
    plain, clear = png(deep, 16), png(deep, 16, 0, ((b"tRNS", struct.pack(">H", deep[3, 4])),))
    np.testing.assert_array_equal(read_grey(clear), read_grey(plain) * (deep != deep[3, 4]))


def test_an_animated_png_is_refused():
    frames = [Image.fromarray(picture()), Image.fromarray(255 - picture())]
    file = io.BytesIO()
    frames[0].save(file, "PNG", save_all=True, append_images=frames[1:])
    with pytest.raises(UnreadableImage, match="animated"):
        read_grey(file.getvalue())
    assert read_grey(png(picture(), 8, 0, ((b"acTL", struct.pack(">II", 1, 0)),))).shape == (40, 30)


def test_grey_in_three_channels_is_the_same_grey():
    data = encode(np.stack([picture()] * 3, -1), "PNG")
    np.testing.assert_array_equal(read_grey(data), picture())


def test_notes():
    deep = np.linspace(0, 4095, 200 * 210).astype(np.uint16).reshape(200, 210)
    for data, said in (
        (encode((deep >> 4).astype(np.uint8), "PNG"), ()),
        (encode(deep, "PNG"), (notes.NO_WINDOW,)),
        (encode((deep >> 4).astype(np.uint8)[1:], "PNG"), (notes.SMALL,)),
        (encode(np.full((200, 200), 9, np.uint8), "PNG"), (notes.FLAT,)),
    ):
        image, found = read_radiograph(data)
        assert found == said
        np.testing.assert_array_equal(image, read_grey(data))


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
        (dicom_file(picture(), NumberOfFrames=2, PixelData=picture().tobytes() * 2), "2 frames"),
        (dicom_file(picture(), Rows=50_000, Columns=50_000), "50000 x 50000"),
        (dicom_file(picture())[:-100], "DICOM"),
    ],
)
def test_what_is_no_radiograph_is_refused(data, reason):
    with pytest.raises(UnreadableImage, match=reason) as caught:
        read_grey(data, "x.png")
    assert caught.value.name == "x.png"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "DICOM"])
def test_a_lower_limit_of_pixels_holds_for_every_format(form):
    data = dicom_file(picture()) if form == "DICOM" else encode(picture(), form)
    with pixel_limit(40 * 30):
        assert read_grey(data).shape == (40, 30)
    with (
        pixel_limit(40 * 30 - 1),
        pytest.raises(UnreadableImage, match=r"30 x 40 pixels; more than 0\.001199 million is no"),
    ):
        read_grey(data)
    assert read_grey(data).shape == (40, 30)


def test_missing_file_and_folder_are_refused(tmp_path):
    for path in (tmp_path / "no.png", tmp_path):
        with pytest.raises(UnreadableImage, match=str(path)):
            read_grey(path)


@pytest.mark.parametrize("source", [None, 3, ["a.png"], np.zeros((9, 9), np.uint8)])
def test_what_is_no_path_is_refused_in_words(source):
    with pytest.raises(UnreadableImage, match=r"^a \w+: give the path of a file$"):
        read_grey(source)


def test_pipes_and_devices_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "hand.png")
    for path in (tmp_path / "hand.png", "/dev/zero"):
        with pytest.raises(UnreadableImage, match="pipe or device"):
            read_grey(path)


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

"""Reading TIFF: against tifffile, and what is refused rather than read wrong."""

import io
import struct

import numpy as np
import pytest
import tifffile
from PIL import Image

from boneage_jax.data import notes
from boneage_jax.data.files import UnreadableImage, read_grey, read_radiograph

SHAPE = (48, 64)


def ramp(kind: str) -> np.ndarray:
    kind = np.dtype(kind)
    low, high = (0, 1000) if kind.kind == "f" else (np.iinfo(kind).min // 2, np.iinfo(kind).max)
    return np.linspace(low, high, SHAPE[0] * SHAPE[1]).reshape(SHAPE).astype(kind)


def tiff(image: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    options = {"photometric": "minisblack"} | options
    tifffile.imwrite(file, image, **options)
    return file.getvalue()


def expected(data: bytes, *, inverted: bool = False) -> np.ndarray:
    """The first page by tifffile, in 8 bits."""
    values = tifffile.imread(io.BytesIO(data), key=0).astype(np.float64)
    if inverted:
        values = values.max() + values.min() - values
    if values.min() < 0 or values.max() > 255 or (values != np.rint(values)).any():
        black, white = np.percentile(values, (0.1, 99.9))
        values = np.clip((values - black) / (white - black), 0, 1) * 255
    return values @ [0.299, 0.587, 0.114] if values.ndim == 3 else values


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", ["u1", "u2", "i2", "u4", "i4", "f4", "f8"])
def test_depth_byte_order_and_polarity(kind, order, photometric):
    data = tiff(ramp(kind).astype(order + kind), photometric=photometric, byteorder=order)
    image, said = read_radiograph(data)
    inverted = photometric == "miniswhite"
    np.testing.assert_allclose(image, expected(data, inverted=inverted), atol=0.51)
    assert (notes.INVERTED in said) == inverted
    assert (notes.NO_WINDOW in said) == (kind != "u1")


OPTIONS = {
    "tiles": {"tile": (16, 32)},
    "BigTIFF": {"bigtiff": True},
    "BigTIFF, big endian": {"bigtiff": True, "byteorder": ">"},
    "strips": {"rowsperstrip": 5},
    **{name: {"compression": name} for name in ("packbits", "lzw", "deflate", "lzma", "zstd")},
    **{f"{name} predicted": {"compression": name, "predictor": True} for name in ("lzw", "zstd")},
}


@pytest.mark.parametrize("kind", ["u1", "u2", "f4"])
@pytest.mark.parametrize("options", OPTIONS)
def test_layout_and_compression(options, kind):
    data = tiff(ramp(kind), **OPTIONS[options])
    np.testing.assert_allclose(read_grey(data), expected(data), atol=0.51)


@pytest.mark.parametrize("kind", ["u1", "u2", "f4"])
def test_colours(kind):
    image = np.stack([ramp(kind), ramp(kind)[::-1], ramp(kind)[:, ::-1]], -1)
    data = tiff(image, photometric="rgb")
    np.testing.assert_allclose(read_grey(data), expected(data), atol=1.01)
    data = tiff(image.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    if kind == "u1":
        np.testing.assert_allclose(read_grey(data), image @ [0.299, 0.587, 0.114], atol=0.51)
    else:
        with pytest.raises(UnreadableImage, match=r"RGB.*separate planes.*not supported"):
            read_grey(data)


def test_lab_is_srgb_by_its_formulas():
    lightness = np.tile(np.linspace(0, 255, SHAPE[1]), (SHAPE[0], 1)).astype(np.uint8)
    data = tiff(np.dstack([lightness, 0 * lightness, 0 * lightness]), photometric="cielab")
    star = lightness / 255 * 100
    linear = np.where(star > 8, ((star + 16) / 116) ** 3, star / 903.3)
    srgb = np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)
    np.testing.assert_allclose(read_grey(data), srgb * 255, atol=0.6)


def test_grey_of_8_bits_is_the_same_in_all_clothes():
    grey = ramp("u1")
    for values, options in (
        (grey.astype(np.uint16), {}),
        (grey.astype(np.float32), {}),
        (255 - grey, {"photometric": "miniswhite"}),
        (np.stack([grey] * 3, -1), {"photometric": "rgb"}),
        (np.stack([grey * 0] * 3 + [255 - grey], -1), {"photometric": "separated"}),
        (grey, {"photometric": "palette", "colormap": np.stack([np.arange(256) * 257] * 3)}),
        (np.stack([grey] * 2), {}),
    ):
        options = {k: v.astype(np.uint16) if k == "colormap" else v for k, v in options.items()}
        np.testing.assert_array_equal(read_grey(tiff(values, **options)), grey)


def test_alpha_lies_on_black():
    grey, alpha = ramp("u1"), ramp("u1")[::-1]
    over_black = grey * (alpha / 255)
    for planes, photometric in (([grey, alpha], "minisblack"), ([grey] * 3 + [alpha], "rgb")):
        image = np.stack(planes, -1)
        data = tiff(image, photometric=photometric, extrasamples=["unassalpha"])
        np.testing.assert_allclose(read_grey(data), over_black, atol=0.51)
    deep = np.stack([ramp("u2")] * 3 + [ramp("u2")[::-1]], -1)
    data = tiff(deep, photometric="rgb", extrasamples=["unassalpha"])
    np.testing.assert_allclose(read_grey(data), over_black, atol=1.5)
    unused = tiff(deep, photometric="rgb", extrasamples=["unspecified"])
    np.testing.assert_allclose(read_grey(unused), grey, atol=1)


def test_jpeg_inside_and_bilevel():
    grey = ramp("u1")
    data = tiff(grey, compression="jpeg")
    np.testing.assert_allclose(read_grey(data), expected(data), atol=1)
    data = tiff(np.stack([grey] * 3, -1), photometric="rgb", compression="jpeg", subsampling=(2, 2))
    np.testing.assert_allclose(read_grey(data), expected(data), atol=1)
    for compression in ("raw", "group4"):
        file = io.BytesIO()
        Image.fromarray(grey > 99).save(file, "TIFF", compression=compression)
        np.testing.assert_array_equal(read_grey(file.getvalue()), (grey > 99) * 255)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["u1", "u2"])
def test_orientation_is_applied(kind, orientation):
    data = tiff(ramp(kind), extratags=[(274, 3, 1, orientation, True)])
    turned = {
        **{1: lambda x: x, 2: lambda x: x[:, ::-1], 3: lambda x: x[::-1, ::-1]},
        **{4: lambda x: x[::-1], 5: lambda x: x.T, 6: lambda x: np.rot90(x, -1)},
        **{7: lambda x: x[::-1, ::-1].T, 8: np.rot90},
    }[orientation](expected(data))
    np.testing.assert_allclose(read_grey(data), turned, atol=0.51)


def bare(values: np.ndarray, bits: int, photometric: int = 1, **tags: int) -> bytes:
    """A file of one strip of packed samples, written by the specification."""
    rows = (values[..., None].astype(np.int64) >> np.arange(bits)[::-1]) & 1
    strip = b"".join(np.packbits(row).tobytes() for row in rows.reshape(len(values), -1))
    height, width = values.shape
    fields = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1}
    fields |= {278: height, 279: len(strip)} | {int(tag[1:]): value for tag, value in tags.items()}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, fields[tag]) for tag in sorted(fields))
    directory = struct.pack("<H", len(fields)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(strip)) + strip + directory


@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 10, 12, 14])
def test_packed_bits(bits, photometric):
    values = (np.linspace(0, 1, SHAPE[0] * SHAPE[1]).reshape(SHAPE) * (2**bits - 1)).astype(int)
    grey = values / (2**bits - 1) * 255
    shown = read_grey(bare(values, bits, photometric))
    np.testing.assert_allclose(shown, 255 - grey if photometric == 0 else grey, atol=1)


def test_pages():
    image, said = read_radiograph(tiff(np.stack([ramp("u1"), ramp("u1")[::-1], ramp("u1")])))
    np.testing.assert_array_equal(image, ramp("u1"))
    assert said == (notes.first_page(3), notes.SMALL)


GREY = ramp("u1")


def without(data: bytes, tag: int) -> bytes:
    """The file with another number, of no meaning, in place of a tag."""
    return data.replace(struct.pack("<HHI", tag, 3, 1), struct.pack("<HHI", 65_000, 3, 1))


@pytest.mark.parametrize("compression", ["zstd", "lzma"])
@pytest.mark.parametrize("kind", ["u1", "u2", "i2", "i4", "f4"])
def test_big_endian_is_read_right_or_refused(kind, compression):
    data = tiff(ramp(kind), byteorder=">", compression=compression)
    if kind[0] == "u":
        np.testing.assert_allclose(read_grey(data), expected(data), atol=1.01)
    else:
        with pytest.raises(UnreadableImage, match="not supported"):
            read_grey(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (tiff(GREY, compression="jpeg2000"), "JPEG 2000 compression.* not supported"),
        (tiff(GREY, compression="lerc"), "LERC"),
        (tiff(GREY, compression="png"), "unknown"),
        (tiff(ramp("f2")), "16 float bits"),
        (tiff(np.stack([ramp("u2")] * 4, -1), photometric="separated"), "CMYK"),
        (tiff(np.stack([ramp("u2")] * 2, -1), extrasamples=["unassalpha"]), "2 x 16 bits"),
        (tiff(GREY, photometric="cfa"), "colour filter"),
        (tiff(np.stack([GREY] * 4), volumetric=True, tile=(16, 16)), "volume of 4 slices"),
        (bare(GREY, 6), "1 x 6 bits"),
        (without(tiff(GREY), 262), "does not say whether zero is black"),
        (bare(GREY, 8, t256=60_000, t257=60_000), "60000 x 60000"),
        (bare(GREY, 8, t257=SHAPE[0] + 1), "cut short"),
        (bare(GREY, 8, t279=100), "cut short"),
        (bare(GREY, 8, t277=30_000, t256=40_000), "claims 40000 x 48"),
        (bare(GREY, 8, t322=1 << 30, t323=1 << 30, t324=8, t325=100), "1073741824"),
    ],
)
def test_what_cannot_be_read_right_is_refused_by_name(data, reason):
    with pytest.raises(UnreadableImage, match=reason) as caught:
        read_grey(data, "x.tif")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("compression", ["deflate", "lzw", "zstd", "jpeg"])
def test_a_damaged_strip_is_no_black_one(compression):
    noise = np.random.default_rng(0).integers(0, 256, SHAPE).astype(np.uint8)
    data = bytearray(tiff(noise, compression=compression, rowsperstrip=16))
    start, length = (tifffile.TiffFile(io.BytesIO(data)).pages[0].tags[tag].value[1]
                     for tag in ("StripOffsets", "StripByteCounts"))  # fmt: skip
    data[start : start + length] = bytes([0x81]) * length
    with pytest.raises(UnreadableImage, match="damaged"):
        read_grey(bytes(data))


def test_a_circle_of_directories_ends():
    data = bytearray(tiff(GREY))
    (first,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, first)
    struct.pack_into("<I", data, first + 2 + 12 * count, first)
    _, said = read_radiograph(bytes(data))
    assert said[0].startswith("first page of")

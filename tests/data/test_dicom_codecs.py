"""Compressed frames against GDCM, and what becomes of damaged ones."""

import contextlib
import io
import sys
from functools import partial

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder

from boneage_jax.data import dicom_codecs, notes
from boneage_jax.data.files import UnreadableImage, read_grey, read_radiograph
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
    window,
)


def jpeg(image, **options):
    bits = 8 if image.dtype == np.uint8 else 12
    return imagecodecs.jpeg8_encode(image, bitspersample=bits, level=95, **options)


def j2k(image, **options):
    return imagecodecs.jpeg2k_encode(image, codecformat="j2k", reversible=True, **options)


COMPRESSED = {
    "baseline": (uid.JPEGBaseline8Bit, BYTES, jpeg),
    "extended 8": (uid.JPEGExtended12Bit, BYTES, jpeg),
    "extended 12": (uid.JPEGExtended12Bit, RAMP, jpeg),
    **{f"lossless {n}": (uid.JPEGLossless, RAMP, partial(jpeg, lossless=True, predictor=n))
       for n in range(1, 8)},
    "SV1": (uid.JPEGLosslessSV1, RAMP, lambda x: jpeg(x, lossless=True, predictor=1)),
    "SV1 8": (uid.JPEGLosslessSV1, BYTES, lambda x: jpeg(x, lossless=True, predictor=1)),
    "LS": (uid.JPEGLSLossless, RAMP, imagecodecs.jpegls_encode),
    "LS lossy": (uid.JPEGLSNearLossless, RAMP, lambda x: imagecodecs.jpegls_encode(x, level=2)),
    "2000": (uid.JPEG2000Lossless, RAMP, j2k),
    "2000 lossy": (uid.JPEG2000, RAMP, lambda x: imagecodecs.jpeg2k_encode(x, level=60)),
    "HT": (uid.HTJ2KLossless, RAMP, imagecodecs.htj2k_encode),
    "HT RPCL": (uid.HTJ2KLosslessRPCL, RAMP, imagecodecs.htj2k_encode),
    "HT lossy": (uid.HTJ2K, RAMP, lambda x: imagecodecs.htj2k_encode(x, reversible=False)),
}  # fmt: skip


def compressed(kind: str, **tags) -> bytes:
    syntax, image, encode = COMPRESSED[kind]
    shown = DEEP if image is RAMP else {}
    return dicom_file(image, syntax, PixelData=encapsulate([encode(image)]), **shown, **tags)


@pytest.mark.parametrize("kind", COMPRESSED)
def test_compressed_frames_are_those_of_gdcm(kind, tmp_path):
    data = compressed(kind)
    if "HT" in kind:  # which GDCM does not know; 4 is what the lossy one loses
        values, tolerance = RAMP, 0.6
    else:
        (tmp_path / "x.dcm").write_bytes(data)
        values, tolerance = by_gdcm(tmp_path / "x.dcm"), 0.51
    expected = values / 4095 * 255 if values.dtype == np.uint16 else values
    np.testing.assert_allclose(read_grey(data), expected, atol=tolerance)


def test_rle_and_compressed_colours(tmp_path):
    dataset = pydicom.dcmread(io.BytesIO(dicom_file(RAMP, **DEEP)))
    dataset.compress(uid.RLELossless)
    dataset.save_as(tmp_path / "rle.dcm")
    np.testing.assert_array_equal(
        read_grey(tmp_path / "rle.dcm"), read_grey(dicom_file(RAMP, **DEEP))
    )
    for syntax, encode in [
        (uid.JPEGLosslessSV1, lambda x: jpeg(x, lossless=True, predictor=1, colorspace="RGB",
                                             outcolorspace="RGB")),
        (uid.JPEGLSLossless, imagecodecs.jpegls_encode),
        (uid.JPEG2000Lossless, lambda x: j2k(x, mct=False)),
    ]:  # fmt: skip
        for planar in (0, 1):  # the header's word, which pydicom would follow
            tags = {"PlanarConfiguration": planar, "PixelData": encapsulate([encode(COLOUR)])}
            data = dicom_file(COLOUR, syntax, **tags)
            (tmp_path / "colour.dcm").write_bytes(data)
            np.testing.assert_array_equal(by_gdcm(tmp_path / "colour.dcm"), COLOUR)
            np.testing.assert_allclose(read_grey(data), LUMA, atol=0.51)


def test_signed_values_of_jpeg_that_knows_no_sign():
    signed = RAMP.astype(np.int16) - 2048
    for syntax, encode in (
        (uid.JPEGLosslessSV1, lambda x: jpeg(x, lossless=True, predictor=1)),
        (uid.JPEGLSLossless, imagecodecs.jpegls_encode),
    ):
        frame = encode(signed.astype(np.uint16) & 0xFFF)
        tags = TWELVE | window(0, 4096) | {"PixelData": encapsulate([frame])}
        np.testing.assert_allclose(read_grey(dicom_file(signed, syntax, **tags)), FULL, atol=0.51)


def test_bits_above_those_stored_are_said(tmp_path):
    high = RAMP | np.where(BYTES > 99, 0x8000, 0).astype(np.uint16)  # as an overlay in bit 15
    for syntax, encode in ((uid.JPEGLSLossless, imagecodecs.jpegls_encode), (uid.JPEG2000, j2k)):
        tags = TWELVE | window(0x8000, 0x10000) | {"PixelData": encapsulate([encode(high)])}
        (tmp_path / "x.dcm").write_bytes(dicom_file(high, syntax, **tags))
        shown, said = read_radiograph(tmp_path / "x.dcm")
        np.testing.assert_allclose(shown, by_gdcm(tmp_path / "x.dcm") / 65535 * 255, atol=0.51)
        assert notes.BITS in said


@contextlib.contextmanager
def without_imagecodecs():
    """pydicom as it finds its decoders where imagecodecs is not installed."""

    def find_again():
        for syntax in dicom_codecs.DECODER_DEPENDENCIES:
            decoder = get_decoder(syntax)
            decoder.remove_plugin("imagecodecs")
            decoder.add_plugin("imagecodecs", (dicom_codecs.__name__, "decode_frame"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "imagecodecs", None)
        find_again()
        try:
            yield
        finally:
            patch.undo()
            find_again()


def test_a_missing_decoder_is_named():
    needed = [compressed(kind) for kind in ("SV1", "LS", "HT", "extended 12")]
    others = [compressed(kind) for kind in ("2000", "baseline")]
    with without_imagecodecs():
        for data in needed:
            with pytest.raises(UnreadableImage, match=r"pip install 'boneage_jax\[dicom\]'$"):
                read_grey(data)
        for data in others:
            assert read_grey(data).shape == RAMP.shape
    assert read_grey(needed[0]).shape == RAMP.shape


@pytest.mark.parametrize("kind", ["baseline", "extended 12", "SV1", "LS", "2000", "HT"])
def test_cut_frames_are_refused(kind):
    syntax, image, encode = COMPRESSED[kind]
    frame = encode(image)
    for length in range(0, len(frame) - 2, len(frame) // 9):
        with pytest.raises(UnreadableImage) as caught:
            read_grey(dicom_file(image, syntax, PixelData=encapsulate([frame[:length] or b"\0"])))
        assert "\n" not in str(caught.value)


def test_a_frame_that_claims_another_size_is_refused():
    for kind, place in (("SV1", b"\xff\xc3"), ("LS", b"\xff\xf7"), ("2000", b"\xff\x51")):
        syntax, image, encode = COMPRESSED[kind]
        frame = bytearray(encode(image))
        at = frame.index(place) + (5 if kind != "2000" else 6)
        frame[at : at + 2] = b"\xff\xff"
        with pytest.raises(UnreadableImage, match=r"pixels"):
            read_grey(dicom_file(image, syntax, PixelData=encapsulate([bytes(frame)])))

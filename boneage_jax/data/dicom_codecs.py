"""Compressed DICOM frames that Pillow cannot decode, by imagecodecs (the extra `dicom`).

pydicom takes this module as a decoder plugin. It has one for GDCM, too, which ends the process on a
damaged JPEG frame (an uncaught C++ exception, python-gdcm 3.2.6) and refuses 12-bit JPEG.
"""

import importlib.util

from pydicom import uid
from pydicom.pixels.decoders.base import DecodeRunner

EXTRA = "boneage_jax[dicom]"

_JPEG = (
    uid.JPEGBaseline8Bit,
    uid.JPEGExtended12Bit,
    uid.JPEGLossless,
    uid.JPEGLosslessSV1,
)
_JPEG_2000 = (
    *(uid.JPEG2000Lossless, uid.JPEG2000),
    *(uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K),
)
_JPEG_LS = (uid.JPEGLSLossless, uid.JPEGLSNearLossless)
DECODER_DEPENDENCIES = {  # pydicom asks for it by this name
    syntax: ("imagecodecs",) for syntax in (*_JPEG, *_JPEG_2000, *_JPEG_LS)
}


def is_available(syntax: str) -> bool:
    """Returns whether frames of this transfer syntax can be decoded here."""
    return syntax in DECODER_DEPENDENCIES and importlib.util.find_spec("imagecodecs") is not None


def decode_frame(frame: bytes, runner: DecodeRunner) -> bytes:
    """Decodes a frame to samples, pixel by pixel, and tells `runner` their width.

    Raises:
      ValueError: the frame has another size than the header says.
      RuntimeError: the frame is damaged; each codec raises a subclass of its own.
    """
    import imagecodecs

    syntax = runner.transfer_syntax
    if syntax in _JPEG_LS:
        pixels = imagecodecs.jpegls_decode(frame)
    elif syntax in _JPEG_2000:
        pixels = imagecodecs.jpeg2k_decode(frame)
    elif runner.samples_per_pixel == 1:
        pixels = imagecodecs.jpeg8_decode(frame)
    else:  # no conversion: pydicom converts by the photometric interpretation
        pixels = imagecodecs.jpeg8_decode(frame, colorspace="RGB", outcolorspace="RGB")
    samples = () if runner.samples_per_pixel == 1 else (runner.samples_per_pixel,)
    if pixels.shape != (runner.rows, runner.columns, *samples):
        raise ValueError(f"the frame is {pixels.shape}, its header says otherwise")
    bits = 8 * pixels.dtype.itemsize
    if syntax not in _JPEG_2000 and runner.pixel_representation and runner.bits_stored < bits:
        # JPEG and JPEG-LS know no sign: the highest bit stored is it.
        spare = bits - runner.bits_stored
        pixels = (pixels.view(f"i{pixels.dtype.itemsize}") << spare) >> spare
    runner.set_option("bits_allocated", bits)
    if samples:
        runner.set_option("planar_configuration", 0)
    return pixels.tobytes()

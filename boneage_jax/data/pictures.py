"""Decodes PNG, JPEG and TIFF."""

import struct

import cv2
import numpy as np

from boneage_jax.data.grey import Picture, opacity
from boneage_jax.data.headers import check_jpeg, check_png
from boneage_jax.data.tiff import read_tiff


def read_picture(data: bytes, form: str) -> Picture:
    """Decodes a complete file of format `png`, `jpeg` or `tiff`.

    Raises:
      ValueError: truncated, damaged, animated, too large, or of a kind that is not supported.
      cv2.error: damaged.
    """
    try:
        return {"png": _read_png, "jpeg": _read_jpeg, "tiff": read_tiff}[form](data)
    except struct.error:
        raise ValueError(f"the {form.upper()} file is cut short") from None


def _read_png(data: bytes) -> Picture:
    header = check_png(data)
    # UNCHANGED keeps alpha and depth, and ignores EXIF rotation, which only photographs have.
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None or not image.size:
        raise ValueError("the PNG file is damaged")
    if image.ndim == 3 and image.shape[-1] in (2, 4):
        values = image[..., :3] if image.shape[-1] == 4 else image[..., 0]
        return Picture(np.ascontiguousarray(values), opacity(image[..., -1]))
    if image.ndim == 3 and image.shape[-1] == 1:
        image = image[..., 0]
    if header.transparent is None or image.ndim == 3:
        return Picture(image)
    # OpenCV leaves out this kind of transparency. Fewer bits than 8 were stretched to 8.
    grey = header.transparent * (255 // (2**header.bits - 1) if header.bits < 8 else 1)
    return Picture(image, (image != grey).astype(np.float32))


def _read_jpeg(data: bytes) -> Picture:
    header = check_jpeg(data)
    if header.is_ls or header.bits != 8:
        kind = "JPEG-LS" if header.is_ls else f"a JPEG of {header.bits} bits"
        raise ValueError(f"{kind} is not supported; save it as PNG, or keep the DICOM file")
    # ANYCOLOR applies EXIF rotation.
    flags = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if image is None or not image.size:
        raise ValueError("the JPEG file is damaged")
    return Picture(image)

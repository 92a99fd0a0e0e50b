"""DICOM files made of arrays, as bytes, and the arrays and windows of several tests."""

import io
from pathlib import Path

import numpy as np
import pydicom
from pydicom.uid import ExplicitVRLittleEndian

RAMP = np.linspace(0, 4095, 64 * 48).astype(np.uint16).reshape(64, 48)
FULL = RAMP / 4095 * 255  # as a window from 0 to 4095 shows it
BYTES = (RAMP >> 4).astype(np.uint8)
TWELVE = {"BitsStored": 12}
COLOUR = np.stack([BYTES, BYTES[::-1], 255 - BYTES], -1)
LUMA = COLOUR @ np.array([0.299, 0.587, 0.114])


def window(center, width, function=None, **tags):
    """The tags of a VOI window."""
    return {"WindowCenter": center, "WindowWidth": width, **tags} | (
        {"VOILUTFunction": function} if function else {}
    )


DEEP = TWELVE | window(2048, 4096)


def dicom_file(image: np.ndarray, syntax: str = ExplicitVRLittleEndian, **tags) -> bytes:
    """A file of one frame, [H, W] or [H, W, 3]; `tags` replace what it says, None removes."""
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    data.Rows, data.Columns = image.shape[:2]
    data.SamplesPerPixel = 1 if image.ndim == 2 else 3
    data.PhotometricInterpretation = "MONOCHROME2" if image.ndim == 2 else "RGB"
    if image.ndim == 3:
        data.PlanarConfiguration = 0
    data.BitsAllocated = data.BitsStored = image.dtype.itemsize * 8
    data.PixelRepresentation = int(image.dtype.kind == "i")
    order = "<" if data.file_meta.TransferSyntaxUID.is_little_endian else ">"
    data.PixelData = image.astype(image.dtype.newbyteorder(order)).tobytes()
    data["PixelData"].VR = "OB" if image.dtype.itemsize == 1 else "OW"
    data.HighBit = (tags.get("BitsStored") or data.BitsStored) - 1
    for key, value in tags.items():
        if value is None:
            del data[key]
        else:
            setattr(data, key, value)
    if data.file_meta.TransferSyntaxUID.is_compressed and syntax.is_encapsulated:
        data["PixelData"].VR = "OB"
        data["PixelData"].is_undefined_length = True
    file = io.BytesIO()
    data.save_as(file, enforce_file_format=True)
    return file.getvalue()


def table(entries, first: int = 0, bits: int = 16) -> pydicom.Dataset:
    """The item of a table of values, its entries in words, or in bytes if they are bytes."""
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(entries), first, bits])
    packed = entries if isinstance(entries, bytes) else np.asarray(entries, "<u2").tobytes()
    item.add_new("LUTData", "OW", packed)
    return item


def by_gdcm(path: Path) -> np.ndarray:
    """The values of a file as GDCM decodes them, [H, W] or [H, W, 3]."""
    import gdcm

    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    image = reader.GetImage()
    columns, rows = image.GetDimension(0), image.GetDimension(1)
    kind = "u1" if image.GetPixelFormat().GetBitsAllocated() == 8 else "u2"
    values = np.frombuffer(image.GetBuffer().encode("utf-8", "surrogateescape"), kind)
    return values.reshape(rows, columns, -1).squeeze()

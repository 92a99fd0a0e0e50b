"""DICOM files made of arrays, as bytes."""

import io

import numpy as np
import pydicom
from pydicom.uid import ExplicitVRLittleEndian


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

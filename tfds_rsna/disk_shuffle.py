"""Lets TFDS sort more than 1 GiB of records without TensorFlow.

TFDS writes records in the order of the hashes of their keys. It keeps them in memory up to 1 GiB;
beyond, as for the RSNA set at 299 pixels or more, it sorts them by way of files that it opens with
TensorFlow (`tensorflow_datasets.core.shuffle`, 4.9). Here they are plain files, opened one at a
time: TFDS holds a thousand open, as many as most systems allow in all.
"""

import contextlib
import os
import struct
from collections.abc import Iterator

from tensorflow_datasets.core import shuffle

_HEAD = struct.Struct("=QQQ")  # upper and lower half of the hash of the key, length of the record
_LOW = 2**64 - 1


class Bucket:
    """Records of a range of hashes in a file; has the interface of TFDS's own class.

    Attributes:
      size: bytes of the records.
    """

    def __init__(self, path: os.PathLike[str]):
        self._path = path
        self._count, self.size = 0, 0

    def __len__(self) -> int:
        return self._count

    def add(self, key: int, data: bytes) -> None:
        """Appends a record with its hash of 128 bits.

        Raises:
          OSError: the disk is full.
        """
        with open(self._path, "ab") as file:
            file.write(_HEAD.pack(key >> 64, key & _LOW, len(data)) + data)
        self._count += 1
        self.size += len(data)

    def read_values(self) -> Iterator[tuple[int, bytes]]:
        """Yields (hash, record) in the order of `add`."""
        if not self._count:
            return
        with open(self._path, "rb") as file:
            while head := file.read(_HEAD.size):
                high, low, length = _HEAD.unpack(head)
                yield high << 64 | low, file.read(length)

    def del_file(self) -> None:
        """Removes the file."""
        if self._count:
            os.unlink(self._path)


@contextlib.contextmanager
def shuffling_on_disk() -> Iterator[None]:
    """Context manager in which TFDS sorts large sets by `Bucket`; in the same order as ever."""
    theirs = shuffle._Bucket
    shuffle._Bucket = Bucket
    try:
        yield
    finally:
        shuffle._Bucket = theirs

"""An uncompressed copy of prepared images beside their records, from which batches are read.

Reading a record takes 0.3 to 0.8 ms at 512 px (zstd, protobuf, copies; one core), most of it
wasted, since every epoch reads the same pixels. So the first run that opens a prepared data set
writes them to `DATA/uncompressed/SPLIT-FEATURE.npy`, in NumPy's format, and the labels to
`SPLIT.npz`. Batches are then single reads from the page cache into memory that the device uses
without a copy. docs/data.md has the numbers. The folder may be removed at any time.
"""

import contextlib
import json
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, SupportsIndex

import numpy as np

from boneage_jax.data.file_lock import locked
from boneage_jax.data.records import Records
from boneage_jax.errors import InputError

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

FOLDER = "uncompressed"
_SPARE = 2**30  # bytes to leave free on the disk
_MADE_FROM = "made_from"
_ALIGNMENT = 64  # bytes; jax.device_put on a CPU uses memory aligned to this without a copy


class _Pixels(NamedTuple):
    """A `.npy` file of images: its path, open descriptor, offset of row 0, shape of a row."""

    path: Path
    file: int
    start: int
    shape: tuple[int, ...]


class Uncompressed:
    """Records with random access, one by one as in `RecordSource`, or in batches.

    Attributes:
      tables: one array [n] per scalar feature.
    """

    def __init__(self, folder: Path, split: str, images: Mapping[str, tuple[int, ...]]):
        """Opens the files written by `open_uncompressed`.

        Args:
          folder: folder of the files.
          split: name of the split.
          images: shape of a record's array by feature, e.g. {image: (S, S, 1)}; uint8.

        Raises:
          OSError, ValueError, KeyError, EOFError, BadZipFile: a file is missing, truncated, or
            holds something else.
        """
        with (folder / f"{split}.npz").open("rb") as file:  # np.load leaks its own file on an error
            stored = np.load(file, allow_pickle=False)
            if not isinstance(stored, np.lib.npyio.NpzFile):
                raise ValueError(f"{folder / split}.npz is no archive of arrays")
            tables = {key: stored[key] for key in stored.files}
        self.made_from = str(tables.pop(_MADE_FROM, ""))
        self.tables = tables
        lengths = {len(table) for table in tables.values()}
        if len(lengths) != 1:
            raise ValueError(f"{folder / split}.npz: tables of different lengths")
        self._length = lengths.pop()
        self._pixels: dict[str, _Pixels] = {}
        for key, shape in images.items():
            path = folder / f"{split}-{key}.npy"
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            if array.dtype != np.uint8 or array.shape != (self._length, *shape):
                raise ValueError(f"{path} holds {array.dtype} {array.shape}")
            start = array.offset  # type: ignore[attr-defined]
            self._pixels[key] = _Pixels(path, os.open(path, os.O_RDONLY), start, shape)

    def __del__(self) -> None:
        for pixels in getattr(self, "_pixels", {}).values():
            if os is not None and os.close is not None:  # at exit modules may be gone
                os.close(pixels.file)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        row = int(index)
        record: dict[str, Any] = {key: table[row] for key, table in self.tables.items()}
        return record | {key: self._read(key, np.asarray([row]))[0] for key in self._pixels}

    def batch(self, rows: np.ndarray, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns the features `keys` of the records `rows` (int [n]), each stacked: [n, ...].

        Raises:
          InputError: a file was truncated or can no longer be read.
        """
        return {
            key: self._read(key, rows) if key in self._pixels else self.tables[key][rows]
            for key in keys
        }

    def _read(self, key: str, rows: np.ndarray) -> np.ndarray:
        """Reads rather than maps, so that a failing disk raises instead of killing the process."""
        path, file, start, shape = self._pixels[key]
        size = int(np.prod(shape))
        out = _aligned(len(rows) * size)
        view = memoryview(out)  # type: ignore[arg-type]
        for place, row in enumerate(rows):
            part = view[place * size : (place + 1) * size]
            try:
                done = os.preadv(file, [part], start + int(row) * size)
            except OSError as error:
                raise InputError(f"{path} cannot be read ({error.strerror})") from error
            if done != size:
                raise InputError(f"{path} was cut off while in use; remove {path.parent}")
        return out.reshape(len(rows), *shape)


def open_uncompressed(
    builder: "tfds.core.DatasetBuilder", split: str, *, write: bool = True
) -> Uncompressed | None:
    """Opens the uncompressed copy of a split, writing it first if none matches the records.

    If several processes open it, one writes and the others wait. A copy matches while names, sizes
    and modification times of the record files are those that it was made from.

    Args:
      builder: builder of prepared data.
      split: name of the split.
      write: whether to write a missing copy.

    Returns:
      The copy, or None if there cannot be one, because images have different sizes, the folder is
      not on a local disk or not writable, or the disk has too little space (the latter two are
      reported on standard error).
    """
    root = Path(builder.data_path)
    images, simple = _features(builder)
    if not simple or "://" in str(builder.data_path):
        return None
    folder = root / FOLDER
    made_from = _made_from(builder, split)
    if (found := _open(folder, split, images, made_from)) or not write:
        return found
    try:
        folder.mkdir(exist_ok=True)
        with locked(folder / ".lock", lambda: None):
            if found := _open(folder, split, images, made_from):
                return found
            _write(builder, split, folder, images, made_from)
    except OSError as error:
        print(
            f"{folder} cannot be written ({error.strerror or error}); "
            "images are read from their records, which is slower",
            file=sys.stderr,
        )
        return None
    return _open(folder, split, images, made_from)


def _open(
    folder: Path, split: str, images: Mapping[str, tuple[int, ...]], made_from: str
) -> Uncompressed | None:
    try:
        found = Uncompressed(folder, split, images)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # NumPy's, on damage
        return None
    return found if found.made_from == made_from else None


def _features(builder: "tfds.core.DatasetBuilder") -> tuple[dict[str, tuple[int, ...]], bool]:
    """Returns the image shapes by feature, and whether all features are such images or scalars."""
    images: dict[str, tuple[int, ...]] = {}
    for key, feature in (builder.info.features or {}).items():
        shape = feature.shape
        if shape and None not in shape and feature.np_dtype == np.uint8:
            images[key] = tuple(shape)
        elif shape:
            return {}, False
    return images, bool(images)


def _made_from(builder: "tfds.core.DatasetBuilder", split: str) -> str:
    """Returns names, sizes and times of the record files of a split."""
    files = []
    for path in builder.info.splits[split].filepaths:
        status = os.stat(path)
        files.append([Path(path).name, status.st_size, status.st_mtime_ns])
    return json.dumps(files)


def _write(
    builder: "tfds.core.DatasetBuilder",
    split: str,
    folder: Path,
    images: Mapping[str, tuple[int, ...]],
    made_from: str,
) -> None:
    """Writes to a temporary folder, then renames; labels last, as nothing opens without them."""
    source = Records(builder, split)
    count = len(source)
    needed = count * sum(int(np.prod(shape)) for shape in images.values())
    if shutil.disk_usage(folder).free < needed + _SPARE:
        raise OSError(f"{needed / 1e9:.1f} GB and 1 GB to spare are not free on that disk")
    if needed > 2**28:  # seconds of work
        print(f"writing {needed / 1e9:.1f} GB uncompressed to {folder}, once", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix=".incomplete.", dir=folder) as beside:
        columns: dict[str, list[Any]] = {}
        with contextlib.ExitStack() as stack:
            files = {}
            for key, shape in images.items():
                file = stack.enter_context(open(Path(beside, f"{split}-{key}.npy"), "wb"))
                header = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
                np.lib.format.write_array_header_1_0(file, header)
                files[key] = file
            for record in source:
                for key, value in record.items():
                    if key in files:
                        files[key].write(np.ascontiguousarray(value).data)
                    else:
                        columns.setdefault(key, []).append(value)
        tables = {key: np.asarray(values) for key, values in columns.items()}
        tables[_MADE_FROM] = np.asarray(made_from)
        np.savez(Path(beside, f"{split}.npz"), **tables)  # type: ignore[arg-type]
        for key in images:
            Path(beside, f"{split}-{key}.npy").replace(folder / f"{split}-{key}.npy")
        Path(beside, f"{split}.npz").replace(folder / f"{split}.npz")


def _aligned(size: int) -> np.ndarray:
    """Returns uninitialised bytes that start at a multiple of `_ALIGNMENT`."""
    block = np.empty(size + _ALIGNMENT, np.uint8)
    start = -block.ctypes.data % _ALIGNMENT
    return block[start : start + size]

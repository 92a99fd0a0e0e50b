"""Finds the RSNA bone age data in a folder, however it was downloaded and unpacked.

Accepts, alone or combined: the Kaggle copy, RSNA's original zips, their unpacked trees (the
validation images are in two zips inside the zip), and flattened variants. Tables are recognised by
their columns and images by their name, `<id>.png`. Folder names matter only for the split of an
image whose id is ambiguous.
"""

import io
import re
import shutil
import sys
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from boneage_jax.data.counts import describe_counts
from boneage_jax.data.file_names import bare_name, is_hidden
from boneage_jax.data.find_files import HEAD, walk_files, why_no_image
from boneage_jax.data.label_table import MAX_BYTES
from boneage_jax.errors import InputError
from tfds_rsna.decode import ZipMember
from tfds_rsna.rsna_bone_age.labels import (
    EXPECTED,
    Table,
    is_known_name,
    is_test_id,
    merge_tables,
    read_table,
)

_LISTED = 20  # ids listed in a message
_TABLES = (".csv", ".xlsx")
_SPLIT_WORD = re.compile(r"(?<![a-z])(train|val|test)")
_SPLITS = {"train": "train", "val": "validation", "test": "test"}

Source = Path | ZipMember


class Radiograph(NamedTuple):
    """One labelled image: age in months, sex 1 male, 0 female."""

    id: int
    bone_age: float
    male: int
    source: Source


class _Entry(NamedTuple):
    """A file, its path below `raw_dir` as if all archives were unpacked, and why it is no image."""

    path: PurePosixPath
    source: Source
    no_image: str


def find_splits(raw_dir: Path, scratch: Path) -> dict[str, list[Radiograph]]:
    """Finds images and labels and matches them.

    Prints what is left out to standard error: splits without ages, labels without image.

    Args:
      raw_dir: the folder.
      scratch: folder for unpacking zips inside zips (1.1 GB for the validation images).

    Returns:
      Radiographs sorted by id, for each of `train`, `validation` and `test` that is present.

    Raises:
      InputError: no table or no images, images without label, a duplicate id, a damaged archive or
        table (see `read_table`).
    """
    others: Counter[str] = Counter()
    entries = list(_entries(raw_dir, scratch, others))
    tables, all_tables = _read_tables(entries, raw_dir)
    images: dict[tuple[str, int], Source] = {}
    unlabelled: list[str] = []
    left_out = 0
    for entry in entries:
        if entry.no_image:
            others[entry.no_image] += entry.path.suffix.lower() not in _TABLES
            continue
        stem = bare_name(entry.path)
        key = int(stem) if stem.isdecimal() else -1
        split = _split_of(entry, key, tables, all_tables)
        if split in tables and key in tables[split].labels:
            _add(images, (split, key), entry.source)
        elif "test" not in tables and (
            is_test_id(key) or (split == "test" and split in all_tables)
        ):
            left_out += 1
        else:
            unlabelled.append(str(entry.path) if key < 0 else str(key))
    if unlabelled:
        more = f" and {len(unlabelled) - _LISTED} more" if len(unlabelled) > _LISTED else ""
        raise InputError(
            f"{raw_dir}: ids without label: {', '.join(sorted(unlabelled)[:_LISTED])}{more}; add "
            f"the table that holds them, or remove the images (tables found: "
            f"{', '.join(table.name for table in tables.values()) or 'none with ages'})"
        )
    if +others:
        _note(f"left out: {describe_counts(+others)}")
    if left_out:
        _note(f"{left_out} test images without ages are left out")
    splits = {}
    for split in [name for name in _SPLITS.values() if name in tables]:
        labels = tables[split].labels
        found = [
            Radiograph(k, *labels[k], images[split, k]) for k in labels if (split, k) in images
        ]
        if len(found) < len(labels):
            _note(f"{split}: {len(found)} of {len(labels)} labelled images found")
        if found:
            splits[split] = sorted(found, key=lambda radiograph: radiograph.id)
    if not splits:
        raise InputError(f"{raw_dir}: labels, but none of their images (<id>.png) found")
    return splits


def _read_tables(entries: Sequence[_Entry], raw_dir: Path) -> tuple[dict[str, Table], set[str]]:
    """Returns the tables with ages by split, and all splits that have a table."""
    tables, others = [], []
    for entry in entries:
        if entry.path.suffix.lower() not in _TABLES:
            continue
        name = str(entry.source)
        try:
            data = _read(entry.source)
        except InputError:
            if is_known_name(name):
                raise
            data = b""
        table = read_table(data, name)
        if table:
            tables.append(table)
        else:
            others.append(str(entry.path))
    if not tables:
        seen = f"; other tables there: {', '.join(sorted(others)[:_LISTED])}" if others else ""
        raise InputError(f"{raw_dir}: no label table found; expected the columns {EXPECTED}{seen}")
    for name in others:
        _note(f"{name} is not one of the label tables; ignored")
    return merge_tables(tables), {table.split for table in tables}


def _split_of(entry: _Entry, key: int, tables: dict[str, Table], all_tables: set[str]) -> str:
    """Returns an image's split: by its folders if that split has a table, else by its id."""
    holding = [split for split, table in tables.items() if key in table.labels]
    named = ""
    for folder in reversed(entry.path.parts[:-1]):
        words = {_SPLITS[word] for word in _SPLIT_WORD.findall(folder.lower())}
        if len(words) == 1:
            (named,) = words
            break
    if named and (named in all_tables or len(holding) != 1):
        return named
    if len(holding) > 1:
        raise InputError(
            f"{entry.path}: id {key} is in the tables of {' and '.join(sorted(holding))}; the "
            "folder name does not tell which is meant; name it train, validation or test"
        )
    return holding[0] if holding else named


def _add(images: dict[tuple[str, int], Source], at: tuple[str, int], source: Source) -> None:
    """Keeps one source per image; an unpacked file takes precedence over its archive."""
    first = images.setdefault(at, source)
    if first is source:
        return
    if isinstance(first, Path) == isinstance(source, Path):
        raise InputError(f"two images of id {at[1]}: {first} and {source}; remove one")
    if isinstance(source, Path):
        images[at] = source


def _entries(raw_dir: Path, scratch: Path, left_out: Counter[str]) -> Iterator[_Entry]:
    """Yields every file below `raw_dir`, including those in archives, except hidden ones."""
    for path in sorted(walk_files(raw_dir, left_out)):
        inner = PurePosixPath(path.relative_to(raw_dir).as_posix())
        if not path.is_file():
            left_out["not files"] += 1
        elif path.suffix.lower() == ".zip":
            yield from _members(path, inner.with_suffix(""), scratch, left_out)
        else:
            yield _Entry(inner, path, _why_no_image(path.name, partial(io.FileIO, path)))


def _members(
    archive: Path, at: PurePosixPath, scratch: Path, left_out: Counter[str]
) -> Iterator[_Entry]:
    try:
        with zipfile.ZipFile(archive) as opened:
            for info in opened.infolist():
                inner = PurePosixPath(info.filename)
                if info.is_dir():
                    continue
                if any(is_hidden(part) for part in inner.parts):
                    left_out["hidden"] += 1
                elif inner.suffix.lower() == ".zip":
                    # Seeking in a compressed member rereads it from its start each time.
                    unpacked = scratch / f"{len(list(scratch.iterdir()))}-{inner.name}"
                    with opened.open(info) as source, unpacked.open("wb") as target:
                        shutil.copyfileobj(source, target, 1 << 20)
                    yield from _members(unpacked, at / inner.with_suffix(""), scratch, left_out)
                else:
                    reason = _why_no_image(inner.name, partial(opened.open, info))
                    yield _Entry(at / inner, ZipMember(archive, info.filename), reason)
    except (zipfile.BadZipFile, EOFError, RuntimeError) as error:
        raise InputError(
            f"{archive}: not a whole zip archive ({error}); download it again"
        ) from error


def _why_no_image(name: str, opener: Callable[[], io.FileIO | IO[bytes]]) -> str:
    def head() -> bytes:
        with opener() as file:
            return file.read(HEAD)

    try:
        return why_no_image(name, head)
    except (OSError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error):
        return "cannot be read"


def _read(source: Source) -> bytes:
    try:
        if isinstance(source, Path):
            size = source.stat().st_size
        else:
            with zipfile.ZipFile(source.archive) as opened:
                size = opened.getinfo(source.member).file_size
        if size > MAX_BYTES:
            raise InputError(f"{source}: {size} bytes are too many for a label table")
        if isinstance(source, Path):
            return source.read_bytes()
        with zipfile.ZipFile(source.archive) as opened:
            return opened.read(source.member)
    except (OSError, zipfile.BadZipFile, RuntimeError) as error:
        raise InputError(f"{source} cannot be read: {error}") from error


def _note(text: str) -> None:
    print(f"rsna_bone_age: {text}", file=sys.stderr)

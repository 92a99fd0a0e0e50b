"""Decodes and resizes radiographs on all cores, in order, with bounded memory."""

import itertools
import os
import sys
import threading
import zipfile
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np

from boneage_jax.data.file_names import image_stem
from boneage_jax.data.files import UnreadableImage, fit_square, read_radiograph
from boneage_jax.errors import InputError
from boneage_jax.inference.background_removal import Background
from boneage_jax.runtime.progress import progress

_LISTED = 20  # names listed in an error message; the rest are counted
_AHEAD = 4  # images in flight per thread
_MAX_BYTES = 1 << 30


class ZipMember(NamedTuple):
    """A file inside a zip archive."""

    archive: Path
    member: str

    def __str__(self) -> str:
        return f"{self.archive}:{self.member}"


class Item(NamedTuple):
    """One image to decode; `key` identifies it in the data set."""

    key: str
    source: Path | ZipMember


class Decoded(NamedTuple):
    """A decoded image, uint8 [S, S] or [H, W], with its height and width before resizing.

    `notes` says what a user must know of how it was read, see `read_radiograph`.
    """

    key: str
    image: np.ndarray
    height: int
    width: int
    notes: tuple[str, ...] = ()


def decode_all(
    items: Sequence[Item],
    size: int | None,
    *,
    skip_unreadable: bool,
    description: str,
    background: Background | None = None,
    noted: dict[str, tuple[str, ...]] | None = None,
    fit: str = "pad",
) -> Iterator[Decoded]:
    """Decodes images to grey squares, in the order of `items`.

    Uses threads, not processes: OpenCV and zlib release the GIL, so an image costs the same as in a
    separate process, without the start-up and the copies between processes.

    Args:
      items: what to decode.
      size: side of the square in pixels (see `fit_square`), None to keep each image's own size.
      skip_unreadable: leave unreadable images out and list them on standard error, instead of
        raising after the last image.
      description: of the progress bar, on standard error.
      background: removes the background of each image with the mask of its file's stem.
      noted: notes by the names of the files that have any; added to.
      fit: pad | stretch, see `fit_square`.

    Yields:
      One `Decoded` per readable image.

    Raises:
      InputError: after the last image, with the number of unreadable ones and the first 20 names.
    """
    workers = _cores()
    bar = progress(total=len(items), desc=description, unit="image")
    unreadable: list[UnreadableImage] = []
    with _Decoder(size, background, fit) as decode, bar, ThreadPoolExecutor(workers) as pool:
        sources = iter(items)
        flying: deque[tuple[Item, Future[Decoded | UnreadableImage]]] = deque(
            (item, pool.submit(decode, item))
            for item in itertools.islice(sources, _AHEAD * workers)
        )
        try:
            while flying:
                item, future = flying.popleft()
                decoded = future.result()
                flying.extend((i, pool.submit(decode, i)) for i in itertools.islice(sources, 1))
                bar.update()
                if isinstance(decoded, UnreadableImage):
                    unreadable.append(decoded)
                else:
                    if decoded.notes and noted is not None:
                        noted[str(item.source)] = decoded.notes
                    yield decoded
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    if unreadable:
        listing = _list_unreadable(unreadable, len(items))
        if not skip_unreadable:
            raise InputError(f"{listing}; mend them, or leave them out with --skip_unreadable")
        print(f"{description}: left out {listing}", file=sys.stderr)


class _Decoder:
    """Decodes one item; each thread keeps its own handle of every archive."""

    def __init__(self, size: int | None, background: Background | None, fit: str):
        self._size, self._background, self._how = size, background, fit
        self._open, self._local = ExitStack(), threading.local()

    def __enter__(self) -> "_Decoder":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def __call__(self, item: Item) -> Decoded | UnreadableImage:
        try:
            image, notes = read_radiograph(self._fetch(item.source), name=str(item.source))
            height, width = image.shape
            return Decoded(item.key, self._fit(item, image), height, width, notes)
        except UnreadableImage as error:
            return error
        except InputError as error:  # from its mask
            return UnreadableImage(str(item.source), str(error))

    def _fit(self, item: Item, image: np.ndarray) -> np.ndarray:
        if self._size is None:
            return image
        if self._background is None:
            return fit_square(image, self._size, self._how)
        source = item.source
        path = Path(source.member if isinstance(source, ZipMember) else source)
        return self._background(image, image_stem(path), self._size)

    def _fetch(self, source: Path | ZipMember) -> Path | bytes:
        if isinstance(source, Path):
            return source
        archives = self._local.__dict__.setdefault("archives", {})
        try:
            if source.archive not in archives:
                archives[source.archive] = self._open.enter_context(zipfile.ZipFile(source.archive))
            info = archives[source.archive].getinfo(source.member)
            if info.file_size > _MAX_BYTES:
                raise UnreadableImage(str(source), "larger than 1 GiB")
            return archives[source.archive].read(info)
        except (OSError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            raise UnreadableImage(str(source), f"damaged in its archive: {error}") from error


def _list_unreadable(errors: Sequence[UnreadableImage], total: int) -> str:
    names = "; ".join(f"{error.name} ({error.reason})" for error in errors[:_LISTED])
    more = f"; and {len(errors) - _LISTED} more" if len(errors) > _LISTED else ""
    return f"{len(errors)} of {total} images unreadable: {names}{more}"


def _cores() -> int:
    """Returns the cores that this process may use; a scheduler can limit them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

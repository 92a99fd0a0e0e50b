"""Decodes images in threads ahead of the network, in bounded memory."""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TypeVar

from boneage_jax.errors import InputError

S = TypeVar("S")
T = TypeVar("T")


def read_ahead(
    files: Sequence[S], decode: Callable[[S], T], batch_size: int, pool: Executor
) -> Iterator[list[tuple[S, T | InputError]]]:
    """Yields batches of (file, decoded image or error), in the order of `files`.

    Two batches are decoded ahead, so memory does not grow with the number of files.

    Args:
      files: image files, or whatever else stands for an image.
      decode: called in threads; its `InputError` is yielded in place of a result.
      batch_size: files per batch; the last one may be shorter.
      pool: executor that runs `decode`.
    """
    sources = iter(files)
    ahead = [
        (f, pool.submit(attempt, decode, f)) for f in itertools.islice(sources, 2 * batch_size)
    ]
    while ahead:
        now, ahead = ahead[:batch_size], ahead[batch_size:]
        results = [(file, future.result()) for file, future in now]
        ahead += [(f, pool.submit(attempt, decode, f)) for f in itertools.islice(sources, len(now))]
        yield results


def attempt(decode: Callable[[S], T], file: S) -> T | InputError:
    """Returns `decode(file)`, or why the file cannot be read."""
    try:
        return decode(file)
    except InputError as error:
        return error
    except Exception as error:  # decoders raise many types; one image must not end a batch job
        return InputError(f"it cannot be read: {type(error).__name__}: {error}")


def decoding_threads() -> ThreadPoolExecutor:
    """Returns a pool of one thread per core; OpenCV decodes without the GIL."""
    return ThreadPoolExecutor(os.cpu_count())

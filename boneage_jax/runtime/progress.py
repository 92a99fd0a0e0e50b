"""Progress on standard error: a bar on a terminal, a line of text now and then in a log."""

import sys
from collections.abc import Iterable
from typing import Any, TextIO

from tqdm import tqdm

_LOG_SECONDS = 20.0  # between two lines of a log


def progress(
    items: Iterable[Any] | None = None, *, log_seconds: float = _LOG_SECONDS, **options: Any
) -> tqdm:
    """Returns a tqdm over `items` that suits a terminal, a file and a pipe.

    Args:
      items: what is iterated over, or None for one that is moved by `update`.
      log_seconds: least number of seconds between two lines where there is no terminal.
      **options: of tqdm, e.g. `total`, `desc`, `unit`, `delay`.
    """
    if sys.stderr.isatty():
        return tqdm(items, mininterval=0.2, dynamic_ncols=True, **options)
    return tqdm(items, mininterval=log_seconds, file=_Lines(sys.stderr), **options)


class _Lines:
    """A text file that makes a line of each state of a bar, which tqdm redraws in place."""

    def __init__(self, file: TextIO):
        self._file = file
        self.encoding = file.encoding

    def write(self, text: str) -> None:
        text = text.strip("\r\n ")
        if text:
            self._file.write(f"{text}\n")

    def flush(self) -> None:
        self._file.flush()

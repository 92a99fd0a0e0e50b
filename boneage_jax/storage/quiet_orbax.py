"""What orbax says that users need not read: its log, and what fails after a first failure."""

import contextlib
import gc
import logging
import os
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import Any

_LATE = 10.0  # seconds after which all reads or writes beside a failed one have ended
_CLOSED = "Event loop is closed"


def clear_frames(error: BaseException | None) -> None:
    """Clears the frames of an error and its causes, which hold reads that still fail."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


@contextlib.contextmanager
def without_orbax() -> Iterator[None]:
    """Context manager that silences orbax: saves at INFO, casts at WARNING, errors that it raises.

    Other packages that log through absl are not affected.
    """

    def is_another(record: logging.LogRecord) -> bool:
        return not _of_orbax(record)

    logger = logging.getLogger("absl")
    logger.addFilter(is_another)
    try:
        yield
    finally:
        logger.removeFilter(is_another)


def _of_orbax(record: logging.LogRecord) -> bool:
    return f"{os.sep}orbax{os.sep}" in record.pathname


class LateErrors:
    """Context manager that drops the tracebacks of reads and writes that fail after another one.

    Arrays are read and written concurrently. If one is damaged or the disk is full, orbax closes
    the event loop, and each further one that fails reports itself or the closed loop, from threads
    of orbax or TensorStore or when it is garbage-collected, noise beside the actual error. Reports
    are dropped while the context manager, which threads share, is open, and for `_LATE` seconds
    after a failed restore or save.
    """

    def __init__(self) -> None:
        self._lock, self._depth = threading.Lock(), 0
        self._before: Any = None
        self._before_print: Any = None

    def __enter__(self) -> None:
        with self._lock:
            self._depth += 1
            if self._depth == 1:
                self._before, sys.unraisablehook = sys.unraisablehook, self._unraisable
                self._before_print, sys.excepthook = sys.excepthook, self._printed
                logging.getLogger("asyncio").addFilter(self._is_another)
                logging.getLogger("absl").addFilter(self._is_not_orbax)

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._depth -= 1
            if self._depth == 0:
                sys.unraisablehook = self._before
                sys.excepthook = self._before_print
                logging.getLogger("asyncio").removeFilter(self._is_another)
                logging.getLogger("absl").removeFilter(self._is_not_orbax)

    def linger(self) -> None:
        """Stays open for `_LATE` more seconds: other threads fail after the first."""
        self.__enter__()
        timer = threading.Timer(_LATE, self._leave)
        timer.daemon = True
        timer.start()

    def _leave(self) -> None:
        gc.collect()  # or a read in a garbage cycle would report minutes later
        self.__exit__()

    def _unraisable(self, unraisable: Any) -> None:
        late = "coroutine object _read" in repr(unraisable.object)  # orbax's, for one array
        if not late and _CLOSED not in str(unraisable.exc_value):
            self._before(unraisable)

    def _printed(self, kind: Any, error: BaseException, trace: Any) -> None:
        if _CLOSED not in str(error):  # printed by TensorStore, in a thread of its own
            self._before_print(kind, error, trace)

    def _is_not_orbax(self, record: logging.LogRecord) -> bool:
        return not _of_orbax(record)

    def _is_another(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        of_reads = "orbax" in text or "TensorStore" in text
        return "exception was never retrieved" not in text or not of_reads


without_late_errors = LateErrors()

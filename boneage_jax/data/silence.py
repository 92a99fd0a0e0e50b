"""Keeps the warnings of image libraries off the screen: what matters is raised or noted."""

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# Python's warning filters are per process, not per thread.
_FILTERS = threading.Lock()
_LOGS = logging.getLogger("pydicom")


@contextmanager
def warnings_off() -> Iterator[None]:
    """Ignores Python warnings and pydicom's log, of all threads; one block at a time."""
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = _LOGS.level
        _LOGS.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            _LOGS.setLevel(before)

"""Keeps the warnings of image libraries off the screen: what matters is raised or noted."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# Python's warning filters are per process, not per thread.
_FILTERS = threading.Lock()


@contextmanager
def warnings_off() -> Iterator[None]:
    """Ignores Python warnings inside the block, of all threads; one block at a time."""
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

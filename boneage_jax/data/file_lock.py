"""A lock between processes and machines, as a file that one at a time holds."""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Within, no other process is within; the kernel opens the lock of one that was killed.

    A file system that knows no locks (some of Lustre's mounts and of buckets) lets everybody in.
    The empty file stays: whoever removed it would lock out nobody who has it open.

    Args:
      path: of the file; created where missing, in a folder that exists.
      waiting: called once where another process is within.

    Raises:
      OSError: the file cannot be created.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # NFS locks only what may be written
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)  # a signal's handler may end the wait
        except OSError:
            pass
        yield
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)  # for forked children, too
        os.close(file)

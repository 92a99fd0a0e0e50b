"""A lock between processes and machines, as a file that one at a time holds."""

import contextlib
import errno
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

# Some of Lustre's mounts, of NFS and of buckets.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Within, no other process is within; the kernel opens the lock of one that was killed.

    A file system that knows no locks lets everybody in. The empty file stays: whoever removed it
    would lock out nobody who has it open.

    Args:
      path: of the file; created where missing, in a folder that exists.
      waiting: called once where another process is within.

    Raises:
      OSError: the file cannot be created or opened.
    """
    try:
        lock = take_lock(path)
    except Timeout:
        waiting()
        lock = take_lock(path, wait=True)
    try:
        yield
    finally:
        lock.release()


def take_lock(path: Path, *, wait: bool = False) -> FileLock:
    """Locks a file until `release` is called or the process ends; see `locked`.

    Raises:
      Timeout: another process holds the lock, and `wait` is False.
      OSError: as `locked`.
    """
    # Without preserve_lock_file, a kill could leave a lock that only the existence of its file is.
    lock = FileLock(path, thread_local=False, preserve_lock_file=True)
    try:
        lock.acquire(blocking=wait)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return lock

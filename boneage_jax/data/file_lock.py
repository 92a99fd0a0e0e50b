"""File locks between processes and machines."""

import contextlib
import errno
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

# Raised on some mounts of Lustre, NFS and buckets.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Context manager that holds a lock; the kernel releases it if the process is killed.

    On file systems without locks, every process proceeds. The empty file stays: removing it would
    not lock out processes that have it open.

    Args:
      path: the lock file; created if missing, in an existing folder.
      waiting: called once if another process holds the lock.

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
    # Without preserve_lock_file, a kill could leave a file whose mere existence is the lock.
    lock = FileLock(path, thread_local=False, preserve_lock_file=True)
    try:
        lock.acquire(blocking=wait)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return lock

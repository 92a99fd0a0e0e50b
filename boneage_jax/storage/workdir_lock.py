"""Keeps a second training out of a workdir."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import Timeout

from boneage_jax.data.file_lock import take_lock
from boneage_jax.errors import InputError
from boneage_jax.runtime.distributed import place, said_by_all
from boneage_jax.storage.bucket import checkpoint_folder
from boneage_jax.storage.layout import LOCK


@contextlib.contextmanager
def locked_workdir(folder: Path) -> Iterator[None]:
    """Context manager that holds the lock of a workdir. Collective: process 0 takes it for all.

    The kernel releases the lock when its process ends, however it ends. A workdir in a bucket is
    not locked, nor is one on a file system without locks.

    Args:
      folder: the workdir; created if missing.

    Raises:
      InputError: another training holds it, or the folder cannot be written; raised on all
        processes.
    """
    if checkpoint_folder(folder).parent != folder.absolute():  # in a bucket
        yield
        return
    with contextlib.ExitStack() as held:
        own = "" if place()[0] else _take(folder, held)
        refused = said_by_all("lock of the workdir", f"={own}")[0].removeprefix("=")
        if refused:
            raise InputError(refused)
        yield


def _take(folder: Path, held: contextlib.ExitStack) -> str:
    """Takes the lock and notes the holder in its file; returns the error message, "" if none."""
    path = folder / LOCK
    try:
        if not folder.exists():
            folder.mkdir(parents=True)
            held.callback(_remove_unused, path)
        lock = take_lock(path)
        held.callback(lock.release)
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
    except Timeout:
        return (
            f"{folder} is in use: {_holder(path)} trains there; wait for it, or choose another "
            "--workdir"
        )
    except OSError as error:
        return f"--workdir={folder} cannot be written ({error.strerror}); choose a writable folder"
    return ""


def _remove_unused(lock: Path) -> None:
    """Removes the folder of a lock in which a refused training wrote nothing."""
    with contextlib.suppress(OSError):
        if list(lock.parent.iterdir()) == [lock]:
            lock.unlink()
            lock.parent.rmdir()


def _holder(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace").strip()[:200] or "another process"
    return "another process"

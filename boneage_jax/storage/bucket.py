"""Workdirs in a bucket: gs://BUCKET/PATH.

A run appends to files and renames them, which object stores cannot do. So its small files are in a
local folder, a mirror of those in the bucket, and are pushed before each checkpoint and at the end;
checkpoints, which are large, are written to the bucket directly by orbax. Opening the address
again, on any machine, yields the small files as of the last push. The bucket is authoritative; the
mirror can be deleted at any time.
"""

import contextlib
import hashlib
import itertools
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from etils import epath
from filelock import FileLock, Timeout

from boneage_jax.data.file_lock import take_lock
from boneage_jax.errors import InputError
from boneage_jax.runtime.cache_folder import cache_folder
from boneage_jax.runtime.parallel import process
from boneage_jax.runtime.watchdog import waiting_for_nothing
from boneage_jax.storage.layout import checked_path
from boneage_jax.storage.safe_write import check_path

_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):/+(.*)")  # pathlib merges two slashes into one
_NOTE = ".bucket"  # file in a mirror that holds the address
_CHECKPOINTS = "checkpoints"
_UNFINISHED = (".part", ".partial")
_locks: dict[Path, FileLock] = {}  # locks of the mirrors that this process has open
_in_use: set[Path] = set()  # mirrors that a run of this process writes to
_pushed: dict[Path, tuple[int, int]] = {}  # size and time of a file when it was pushed


def open_workdir(workdir: str | os.PathLike[str]) -> Path:
    """Returns the local folder of a workdir: itself, or the updated mirror of one in a bucket.

    Args:
      workdir: a path, where `~` is expanded, or gs://BUCKET/PATH.

    Raises:
      InputError: see `checked_path`; an unsupported address, or the bucket cannot be read.
    """
    folder = checked_path(workdir)
    address = address_of(workdir)
    scheme, separator, place = address.partition("://")
    if address in ("gs:", "s3:"):  # what pathlib leaves of gs://
        raise InputError(f"workdir {address}// must be a folder or gs://BUCKET/PATH")
    if not separator:
        return check_path(folder, "workdir")
    if scheme == "s3":
        raise InputError(
            f"workdir {address}: orbax writes checkpoints to folders and gs:// alone; "
            "train in a folder and copy it to the bucket"
        )
    if scheme != "gs" or not place:
        raise InputError(f"workdir {address} must be a folder or gs://BUCKET/PATH")
    logging.getLogger("gcsfs").setLevel(logging.ERROR)
    cache = cache_folder()
    if cache is None:
        raise InputError(
            f"workdir {address} needs a folder on this machine for its log, and this user has no "
            "home; set XDG_CACHE_HOME to the absolute path of one"
        )
    mirror = _own_mirror(cache / "buckets", address)
    if mirror not in _in_use:
        (mirror / _NOTE).write_text(address)
        _pull(epath.Path(address), mirror)
    return mirror


@contextlib.contextmanager
def workdir_in_use(workdir: str | os.PathLike[str]) -> Iterator[Path]:
    """Context manager that yields the local folder of a run's workdir, and pushes it on exit.

    While it is open, opening the same address again does not update the mirror.

    Args:
      workdir: a path, or gs://BUCKET/PATH.

    Raises:
      InputError: as `open_workdir`; or on exit, the bucket cannot be written to.
    """
    folder = open_workdir(workdir)
    with _in_use_here(folder):
        try:
            yield folder
        except BaseException:
            waiting_for_nothing()
            with contextlib.suppress(InputError):
                push(folder)
            raise
    waiting_for_nothing()
    push(folder)


@contextlib.contextmanager
def _in_use_here(workdir: Path) -> Iterator[None]:
    root = _mirror(workdir.absolute())
    if root is None or root in _in_use:
        yield
        return
    _in_use.add(root)
    try:
        yield
    finally:
        _in_use.remove(root)


def pull(workdir: Path) -> None:
    """Makes a mirror equal to its bucket; does nothing for a local workdir.

    Raises:
      InputError: the bucket cannot be read.
    """
    root = _mirror(workdir.absolute())
    if root is not None:
        _pull(epath.Path((root / _NOTE).read_text()), root)


def _own_mirror(cache: Path, address: str) -> Path:
    """Returns a mirror that no other process has open, since a pull would overwrite its log.

    Locks end with their process, so mirrors are reused. Processes of a job may share a home.
    """
    for number in itertools.count():
        owner = f"process-{process()[0]}" + (f"-{number}" if number else "")
        # A single path component, so that no mirror is inside another, and short enough for any
        # disk.
        digest = hashlib.sha256(address.encode()).hexdigest()[:16]
        mirror = cache / owner / f"{quote(address, safe='')[-80:]}-{digest}"
        mirror.mkdir(parents=True, exist_ok=True)
        if mirror in _locks:
            return mirror
        try:
            _locks[mirror] = take_lock(mirror.with_name(mirror.name + ".lock"))
        except Timeout:
            continue
        return mirror
    raise AssertionError  # unreachable: the count is infinite


def address_of(workdir: str | os.PathLike[str]) -> str:
    """Returns a workdir as the user wrote it: gs://BUCKET/PATH even after a `pathlib.Path`."""
    match = _ADDRESS.fullmatch(os.fspath(workdir))
    return f"{match[1]}://{match[2].strip('/')}" if match else os.fspath(workdir)


def checkpoint_folder(workdir: Path) -> Any:
    """Returns the folder of the checkpoints: in the workdir, or in the bucket that it mirrors.

    Returns:
      An absolute `pathlib.Path`, or an `etils.epath.Path` in the bucket.
    """
    folder = workdir.absolute()
    root = _mirror(folder)
    if root is None:
        return folder / _CHECKPOINTS
    address = epath.Path((root / _NOTE).read_text())
    return address / folder.relative_to(root).as_posix() / _CHECKPOINTS


def push(workdir: Path) -> None:
    """Copies changed files of a mirror to its bucket; does nothing for a local workdir.

    In a job only the first process pushes.

    Raises:
      InputError: the bucket cannot be written to.
    """
    root = _mirror(workdir.absolute())
    if root is None or process()[0] != 0:
        return
    address = (root / _NOTE).read_text()
    for path in _small_files(root):
        found = path.stat()
        stamp = found.st_size, found.st_mtime_ns
        if _pushed.get(path) == stamp:
            continue
        target = epath.Path(address) / path.relative_to(root).as_posix()
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
        except Exception as error:  # each store has its own errors
            raise _unreachable(str(target), "written", error) from error
        _pushed[path] = stamp


def _pull(address: Any, mirror: Path) -> None:
    wanted = {_NOTE}
    try:
        for source, name in _remote_files(address):
            wanted.add(name)
            target = mirror / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
            found = target.stat()
            _pushed[target] = found.st_size, found.st_mtime_ns
    except Exception as error:
        raise _unreachable(str(address), "read", error) from error
    for path in list(_small_files(mirror)):
        if path.relative_to(mirror).as_posix() not in wanted:
            path.unlink()
    # An earlier run on this machine, since deleted from the bucket, may have left folders.
    for path in mirror.rglob(_CHECKPOINTS):
        shutil.rmtree(path, ignore_errors=True)


def _remote_files(folder: Any, prefix: str = "") -> Iterator[tuple[Any, str]]:
    """Yields the files below a bucket folder with their relative names, except checkpoints."""
    if not folder.exists():
        return
    for path in folder.iterdir():
        if path.name == _CHECKPOINTS or not path.name:
            continue
        if path.is_dir():
            yield from _remote_files(path, f"{prefix}{path.name}/")
        else:
            yield path, f"{prefix}{path.name}"


def _small_files(root: Path) -> Iterator[Path]:
    for path in sorted(root.rglob("*")):
        apart = _CHECKPOINTS in path.relative_to(root).parts or path.suffix in _UNFINISHED
        if path.is_file() and not apart and path.name != _NOTE:
            yield path


def _mirror(folder: Path) -> Path | None:
    """Returns the mirror that a folder is or is inside of, or None."""
    return next((f for f in (folder, *folder.parents) if (f / _NOTE).is_file()), None)


def _unreachable(address: str, how: str, error: Exception) -> InputError:
    reason = (str(error).strip() or repr(error)).splitlines()[0][:200]
    return InputError(
        f"{address} cannot be {how} ({type(error).__name__}: {reason}); it needs pip install "
        "'boneage_jax[bucket]', credentials (gcloud auth application-default login) "
        "and a bucket that exists"
    )

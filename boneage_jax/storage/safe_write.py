"""Atomic writes, and one-line errors for files that cannot be written, e.g. on a full disk."""

import contextlib
import errno
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from boneage_jax.errors import InputError

# Texts of orbax and TensorStore, whose errors carry no errno.
_FULL = ("no space left", "enospc", "disk quota", "edquot", "file too large", "efbig")
_REFUSED = ("permission denied", "permission_denied", "read-only file system", "input/output error")
_FORBIDDEN = ("forbidden", "accessdenied", "access denied", "unauthorized", "bucket does not")
_REFUSALS = (*_FULL, *_REFUSED, *_FORBIDDEN)
# Texts of temporary errors of a store, and of network errors of gcsfs and TensorStore.
_PASSING = re.compile(
    r"unavailable|deadline|time[d-]? ?out|connection|too many requests|slow ?down|rate ?limit"
    r"|temporar|try again|internal error|\b(429|500|502|503|504)\b"
)
_FULL_CODES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LIMITS = {
    errno.EFBIG: "raise ulimit -f",
    errno.EMFILE: "raise ulimit -n",
    errno.ENFILE: "close some programs: the machine has too many open files",
}
_LINKS = 40  # that Linux follows
_CODES = (*_FULL_CODES, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Context manager that turns a failed write into an InputError that names `path`."""
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from error


def check_writable(folder: Path) -> None:
    """Creates a folder, and checks that a file can be created in it.

    Raises:
      InputError: it cannot, e.g. on a file system that is read-only.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()


@contextlib.contextmanager
def in_one_piece(path: Path) -> Iterator[Path]:
    """Context manager that yields `path` + '.part'; it replaces `path` if the block succeeds.

    A kill leaves the old file or the new one, never a partial one. What a link names is replaced,
    not the link. Pipes and devices such as /dev/null, and /dev/stdout wherever it leads, which a
    file must not replace, are yielded themselves.
    """
    if _is_stream(path) or (path.exists() and not (path.is_file() or path.is_dir())):
        yield path
        return
    path = path.resolve() if path.is_symlink() else path
    part = path.with_name(path.name + ".part")
    try:
        yield part
        part.replace(path)
    except BaseException:
        if part.is_file():
            part.unlink()
        raise


def _is_stream(path: Path) -> bool:
    """Returns whether a path is, or links to, an open file of a process, as /dev/stdout does."""
    for _ in range(_LINKS):
        path = Path(os.path.abspath(path))
        if path.parts[1:2] == ("proc",) or path.parts[1:3] == ("dev", "fd"):
            return True
        if not path.is_symlink():
            return False
        path = path.parent / os.readlink(path)
    return False


def check_replaces_nothing(path: Path, option: str, inputs: Iterable[Path]) -> None:
    """Checks that a file to write is none of the files that are read.

    Raises:
      InputError: it is one of them, by whatever name, or `in_one_piece` would write one on the way.
    """
    written = [each for each in (path, Path(f"{path}.part")) if each.exists()]  # mostly none
    if written and any(
        each.samefile(other) for other in inputs if other.exists() for each in written
    ):
        raise InputError(f"{option}={path} names an input; name another file to write")


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file atomically and flushes it to disk.

    Raises:
      OSError: the file cannot be written; the old one is unchanged.
    """
    with in_one_piece(path) as part, part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def check_path(path: Path, option: str) -> Path:
    """Returns a path that checkpoints and records can be written to.

    Args:
      path: path of a folder.
      option: what the user named it with, for the message.

    Raises:
      InputError: the path is not UTF-8, which TensorStore and array_record need.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        shown = os.fsencode(path).decode("utf-8", "backslashreplace")
        raise InputError(f"{option}={shown}: the name is not UTF-8; rename the folder") from error
    return path


def cannot_write(path: Path, error: BaseException) -> InputError:
    """Returns the one-line error for `error`, which was raised while writing `path`."""
    code = error.errno if isinstance(error, OSError) else None
    if code is not None:
        reason, full = os.strerror(code), code in _FULL_CODES
    else:
        text = str(error).lower()
        full = any(word in text for word in _FULL)
        found = [word for word in _REFUSALS if word in text]
        reason = found[0] if found else (str(error).strip() or repr(error)).splitlines()[0][:200]
    remedy = "free some space on that disk" if full else "make it writable"
    remedy = _LIMITS.get(code or 0, remedy)
    return InputError(
        f"{path} cannot be written ({reason}); {remedy}, then start the same command again: a "
        "training goes on from its last checkpoint"
    )


def is_refused_write(error: BaseException) -> bool:
    """Returns whether an error or one of its causes means that the disk rejects writes."""
    chain: BaseException | None = error
    while chain is not None:
        text, code = str(chain).lower(), getattr(chain, "errno", None)
        if code in _CODES or any(word in text for word in _REFUSALS):
            return True
        chain = chain.__cause__ or chain.__context__
    return False


def is_passing(error: BaseException) -> bool:
    """Returns whether an error of a bucket may be gone after a restart of the run."""
    bug = isinstance(error, TypeError | AttributeError | LookupError)
    return not bug and _PASSING.search(str(error).lower()) is not None

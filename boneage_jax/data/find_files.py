"""Finds image files in folders and globs, and counts what is left out."""

import fnmatch
import glob
import os
import stat
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from boneage_jax.data.counts import describe_counts
from boneage_jax.data.file_names import IMAGE_SUFFIXES, OTHER_FORMATS, is_hidden
from boneage_jax.data.headers import sniff
from boneage_jax.errors import InputError

HEAD = 4096  # bytes by which the content of a file is recognised
_COPY_SUFFIXES = (".bak", ".crdownload", ".old", ".orig", ".part", ".tmp", "~")


def find_images(
    patterns: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    left_out: Counter[str] | None = None,
) -> list[Path]:
    """Finds image files.

    Args:
      patterns: files (with any name), folders (searched recursively, also behind links) and globs
        (`**` crosses folders). In folders and globs a file counts if it has one of
        `IMAGE_SUFFIXES`, or, with any other suffix or none, if its content is an image. Hidden
        files and those that systems add (`._7.png`, `Thumbs.db`, `DICOMDIR`) do not count.
      left_out: number of files that do not count, by reason; added to.

    Returns:
      The paths, sorted; a file that is reached in two ways counts once.

    Raises:
      InputError: a path does not exist or cannot be read, or a pattern matches no image.
    """
    found: dict[tuple[str, str], Path] = {}
    folders: dict[Path, str] = {}
    for pattern in [patterns] if isinstance(patterns, str | os.PathLike) else patterns:
        here: Counter[str] = Counter()
        images = list(_find(os.fspath(pattern), here))
        if not images:
            seen = f" ({describe_counts(here)})" if here else ""
            raise InputError(
                f"{pattern}: no image found there{seen}; images are "
                f"{', '.join(sorted(IMAGE_SUFFIXES))}, or files of another name with such content"
            )
        for path in images:
            parent = folders.get(path.parent)
            if parent is None:
                parent = folders[path.parent] = os.path.realpath(path.parent)
            found.setdefault((parent, path.name), path)
        if left_out is not None:
            left_out.update(here)
    if not found:
        raise InputError("no image given: name files, folders or globs")
    return sorted(found.values())


def walk_files(
    folder: Path,
    left_out: Counter[str] | None = None,
    *,
    hidden: Callable[[str], bool] = is_hidden,
    skip: str = "",
) -> Iterator[Path]:
    """Yields everything below a folder that is neither a folder nor hidden.

    Links to folders are followed. Each folder is visited once, under its own path rather than that
    of a link, so that a link back up ends nowhere.

    Args:
      folder: where to search.
      left_out: numbers of hidden files or folders, and of folders that cannot be read; added to.
      hidden: tells by its name whether a file or folder is left out.
      skip: real path of a folder to leave out.

    Raises:
      InputError: `folder` cannot be read.
    """
    left_out = Counter() if left_out is None else left_out
    pending, links, visited = [folder], deque[Path](), set()
    while pending or links:
        parent = pending.pop() if pending else links.popleft()
        try:
            status = os.stat(parent)
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            if skip and os.path.realpath(parent) == skip:
                continue
            with os.scandir(parent) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            if parent == folder:
                raise InputError(f"{folder} cannot be read: {error.strerror}") from error
            left_out["folders that cannot be read"] += 1
            continue
        for entry in entries:
            if hidden(entry.name):
                left_out["hidden"] += 1
            elif entry.is_dir(follow_symlinks=False):
                pending.append(Path(entry.path))
            elif entry.is_symlink() and os.path.isdir(entry.path):
                links.append(Path(entry.path))
            else:
                yield Path(entry.path)


def why_no_image(name: str, head: Callable[[], bytes]) -> str:
    """Returns why a file that was searched for does not count as an image, "" if it does.

    Args:
      name: its file name.
      head: reads its first bytes; called only if the name does not tell.
    """
    suffix = os.path.splitext(name)[1].lower()
    if is_hidden(name):
        return "hidden"
    if suffix in IMAGE_SUFFIXES:
        return ""
    if suffix in OTHER_FORMATS:
        return "of other image formats"
    if name.lower().endswith(_COPY_SUFFIXES):
        return "copies or unfinished"
    content = head()
    return "" if content and sniff(content) else "not images"


def _find(pattern: str, left_out: Counter[str]) -> Iterator[Path]:
    if not pattern:
        raise InputError("an empty path is given; name files, folders or globs")
    if not os.path.lexists(pattern):
        pattern = os.path.expanduser(pattern)
    path = Path(pattern)
    if os.path.isfile(path):
        yield path
    elif os.path.isdir(path):
        yield from _images(walk_files(path, left_out), left_out)
    elif glob.has_magic(pattern):
        for match in _matches(path):
            if os.path.isdir(match):
                yield from _images(walk_files(match, left_out), left_out)
            else:
                yield from _images([match], left_out)
    else:
        try:
            os.stat(path)
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
                raise InputError(f"{pattern} cannot be read: {error.strerror}") from error
            raise InputError(f"{pattern}: no such file or folder") from error
        raise InputError(f"{pattern} is neither a file nor a folder")


def _matches(pattern: Path) -> Iterator[Path]:
    """Yields files and folders that match a glob; hidden ones do not.

    Python's own `**` goes round links that lead back up, in all combinations.
    """
    if "**" not in pattern.parts:
        yield from map(Path, sorted(glob.iglob(str(pattern))))
        return
    at = pattern.parts.index("**")
    for base in map(Path, sorted(glob.iglob(str(Path(*pattern.parts[:at]))))):
        for file in walk_files(base) if os.path.isdir(base) else ():
            if _fits(file.relative_to(base).parts, pattern.parts[at:]):
                yield file


def _fits(names: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Returns whether a path, or a folder that it is in, matches a pattern, part by part."""
    if not pattern:
        return True
    if pattern[0] == "**":
        return any(_fits(names[start:], pattern[1:]) for start in range(len(names) + 1))
    return bool(names) and fnmatch.fnmatch(names[0], pattern[0]) and _fits(names[1:], pattern[1:])


def _images(files: Iterable[Path], left_out: Counter[str]) -> Iterator[Path]:
    for path in files:
        reason = _why_not(path)
        if reason:
            left_out[reason] += 1
        else:
            yield path


def _why_not(path: Path) -> str:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for its writer
            return "not files"
        return why_no_image(path.name, partial(_head, path))
    except OSError:  # e.g. a broken link; whoever reads an image says so
        return "" if path.suffix.lower() in IMAGE_SUFFIXES else "cannot be read"


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD)

"""Fingerprint of a prepared data set: the content of its raw files, and the settings."""

import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from boneage_jax.data.find_files import walk_files
from boneage_jax.runtime.progress import progress
from boneage_jax.storage.safe_write import write_text

_NOTE = "prepared_from.json"
_BLOCK = 1 << 22
_SILENT_SECONDS = 5.0  # before the reading of large raw data is shown
# PNGs in a folder of masks, the network in a U-Net's workdir; not reports or evaluations.
_MASKS = re.compile(r"[^/]*\.png$|facts\.json$|config\.json$|network\.safetensors$|checkpoints/")


class Fingerprint(NamedTuple):
    """What a data set was prepared from.

    Attributes:
      raw: digest of the names and contents of the raw files, "" for none.
      files: the same for files and folders named in the settings, e.g. masks.
      settings: the options of the builder, as text.
      folder: location of the raw files; ignored when fingerprints are compared.
    """

    raw: str
    files: str
    settings: dict[str, str]
    folder: str = ""


def fingerprint(
    raw_dir: Path | None,
    settings: Mapping[str, Any],
    *,
    exclude: Path | None = None,
    known: dict[str, str] | None = None,
    silent_seconds: float = _SILENT_SECONDS,
) -> Fingerprint:
    """Computes the fingerprint of raw data and of the settings it is read with.

    Contents are read only if names, sizes, times or locations differ from those of an earlier call,
    since 11 GB take at least 10 s. A copied folder has the same fingerprint.

    Args:
      raw_dir: folder of the raw data, or None.
      settings: the builder's options; values are compared as text.
      exclude: a folder to skip, since prepared data may be inside `raw_dir`.
      known: digests of contents from earlier calls, by digests of names, sizes, times and
        locations; new ones are added.
      silent_seconds: how long contents are read before the progress is shown.
    """
    excluded = os.path.realpath(exclude) if exclude else ""
    known = {} if known is None else known
    outside = []
    for key, value in sorted(settings.items()) if raw_dir else ():
        path = Path(value) if isinstance(value, str | os.PathLike) and value else None
        if path and path.is_absolute() and path.exists():
            files = _files(path, excluded)
            outside += [f for f in files if key != "masks" or _MASKS.match(f[0])]
    return Fingerprint(
        _digest(list(_files(raw_dir, excluded)), known, silent_seconds) if raw_dir else "",
        _digest(outside, known, silent_seconds) if outside else "",
        {key: str(value) for key, value in sorted(settings.items())},
        str(raw_dir.absolute()) if raw_dir else "",
    )


def stat_digest(folder: Path, exclude: Path | None = None) -> str:
    """Returns the digest of names, sizes and modification times that older versions recorded."""
    excluded = os.path.realpath(exclude) if exclude else ""
    return _of_lines(_stat_lines(list(_files(folder, excluded))))


def write_fingerprint(prepared: str | os.PathLike[str], found: Fingerprint) -> None:
    """Records a fingerprint in a prepared data set."""
    write_text(Path(prepared, _NOTE), json.dumps(found._asdict(), indent=1))


def read_fingerprint(prepared: str | os.PathLike[str]) -> Fingerprint | None:
    """Returns the fingerprint recorded in a prepared data set, or None."""
    try:
        found = json.loads(Path(prepared, _NOTE).read_text(encoding="utf-8"))
        texts = (str(found["raw"]), str(found.get("files", "")))
        return Fingerprint(*texts, dict(found["settings"]), str(found.get("folder", "")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _digest(files: list[tuple[str, Path]], known: dict[str, str], silent_seconds: float) -> str:
    # The location counts too: exports may give all files the same size and time.
    places = [f"{os.path.realpath(path)} {path.stat().st_ctime_ns}" for _, path in files]
    stat = _of_lines(_stat_lines(files) + places)
    if stat not in known:
        known[stat] = _of_lines(_content_lines(files, silent_seconds))
    return known[stat]


def _content_lines(files: list[tuple[str, Path]], silent_seconds: float) -> list[str]:
    lock = threading.Lock()
    size = sum(path.stat().st_size for _, path in files)
    bar = progress(
        total=size,
        desc="reading the raw data once",
        unit="B",
        unit_scale=True,
        delay=silent_seconds,
        log_seconds=silent_seconds,
    )

    def digest(path: Path) -> str:
        found = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                found.update(block)  # releases the GIL
                with lock:
                    bar.update(len(block))
        return found.hexdigest()

    with bar, ThreadPoolExecutor(os.cpu_count()) as pool:
        contents = pool.map(digest, (path for _, path in files))
        return [f"{name} {each}" for (name, _), each in zip(files, contents, strict=True)]


def _of_lines(lines: list[str]) -> str:
    digest = hashlib.sha256()
    for line in sorted(lines):
        digest.update(line.encode("utf-8", "surrogateescape") + b"\n")
    digest.update(b"\n")
    return digest.hexdigest()


def _stat_lines(files: list[tuple[str, Path]]) -> list[str]:
    lines = []
    for name, path in files:
        status = path.stat()
        lines.append(f"{name} {status.st_size} {status.st_mtime_ns}")
    return lines


def _files(path: Path, excluded: str) -> Iterator[tuple[str, Path]]:
    """Yields the files that count with their paths relative to `path`, itself a folder or file."""
    if path.is_file():
        yield ".", path
        return
    for file in walk_files(path, hidden=_comes_and_goes, skip=excluded):
        if file.is_file():
            yield file.relative_to(path).as_posix(), file


def _comes_and_goes(name: str) -> bool:
    """Returns whether a file is one that an open spreadsheet or file manager adds, or is hidden."""
    return name.startswith((".", "~$")) or name.lower() in ("thumbs.db", "desktop.ini")

"""Tells whether the raw data of a prepared data set, or its settings, have changed since."""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

_FILE = "prepared_from.json"
_DEPTH = 8  # folders below the raw folder
# Of a folder of masks its PNGs, of a U-Net's workdir the network: not reports or evaluations.
_MASKS = re.compile(r"[^/]*\.png |facts\.json |config\.json |checkpoints/")


class Fingerprint(NamedTuple):
    """What a data set is prepared from: a digest of the raw files (empty: none), the settings."""

    raw: str
    settings: dict[str, str]


def fingerprint(
    raw_dir: str | os.PathLike[str] | None,
    settings: Mapping[str, Any],
    *,
    exclude: str | os.PathLike[str] = "",
) -> Fingerprint:
    """Fingerprint of a folder and of the settings it is read with.

    Names below `raw_dir`, sizes and modification times count, not contents (the full data set is
    11 GB) and not where the folder lies. Of a setting that names a file or folder outside, the
    same counts.

    Args:
      raw_dir: folder of the raw data, or None.
      settings: the builder's options; values count as text.
      exclude: a folder that does not count: prepared data may lie inside `raw_dir`.
    """
    folders = [(Path(raw_dir), "")] if raw_dir else []
    if raw_dir:
        for key, value in settings.items():
            path = Path(value) if isinstance(value, str | os.PathLike) and value else None
            if path and path.is_absolute() and path.exists():
                folders.append((path, key))
    digest = hashlib.sha256()
    excluded = os.path.realpath(exclude) if exclude else ""
    for folder, key in folders:
        lines = _files(folder, folder, excluded)
        if key == "masks":
            lines = (line for line in lines if _MASKS.match(line))
        for line in sorted(lines):
            digest.update(line.encode("utf-8", "surrogateescape") + b"\n")
        digest.update(b"\n")
    return Fingerprint(
        digest.hexdigest() if folders else "",
        {key: str(value) for key, value in sorted(settings.items())},
    )


def write_fingerprint(prepared: str | os.PathLike[str], found: Fingerprint) -> None:
    """Notes in a prepared data set what it was made from."""
    part = Path(prepared, f"{_FILE}.part")
    part.write_text(json.dumps(found._asdict(), indent=1), encoding="utf-8")
    part.replace(Path(prepared, _FILE))


def read_fingerprint(prepared: str | os.PathLike[str]) -> Fingerprint | None:
    """What a prepared data set was made from; None if that was not noted."""
    try:
        found = json.loads(Path(prepared, _FILE).read_text(encoding="utf-8"))
        return Fingerprint(str(found["raw"]), dict(found["settings"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _files(path: Path, root: Path, excluded: str) -> Iterator[str]:
    if path.is_file():
        status = path.stat()
        yield f"{path.relative_to(root).as_posix()} {status.st_size} {status.st_mtime_ns}"
        return
    for parent, folders, files in os.walk(path, followlinks=True):
        if os.path.realpath(parent) == excluded:
            folders.clear()
            continue
        if len(Path(parent).relative_to(path).parts) >= _DEPTH:  # a link may lead back up
            folders.clear()
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            file = Path(parent, name)
            if not name.startswith(".") and file.is_file():
                status = file.stat()
                below = file.relative_to(root).as_posix()
                yield f"{below} {status.st_size} {status.st_mtime_ns}"

"""Locations of prepared data: one folder per raw folder, so that none overwrites another.

DATA_DIR/sources/NAME-DIGEST/ is a separate TFDS data folder. NAME is the name of the raw folder,
DIGEST the first digits of the digest of its content. Generated and downloaded data, and data
prepared by older versions, are in DATA_DIR itself.
"""

import json
import os
import re
from pathlib import Path
from typing import NamedTuple

import tensorflow_datasets as tfds

from boneage_jax.storage.layout import checked_path
from boneage_jax.storage.safe_write import check_path, write_text
from tfds_rsna.fingerprint import Fingerprint, read_fingerprint

_FOLDER, _SEEN = "sources", "seen.json"
_DIGITS = 12  # digits of the digest in the name of a folder


class Prepared(NamedTuple):
    """A prepared data set: its data folder, its fingerprint, and the time it was prepared."""

    root: Path
    made_from: Fingerprint | None
    time: float


def default_root(data_dir: str | os.PathLike[str] | None = "") -> Path:
    """Returns the folder of prepared data: `data_dir`, else TFDS_DATA_DIR, else TFDS's default."""
    root = data_dir or os.environ.get("TFDS_DATA_DIR", "") or tfds.core.constants.DATA_DIR
    return check_path(checked_path(root, "data_dir"), "data_dir")


def place_of(root: Path, raw_dir: Path, digest: str) -> Path:
    """Returns the data folder for a raw folder with a given content; it need not exist yet."""
    known = sorted((root / _FOLDER).glob(f"*-{digest[:_DIGITS]}"))
    name = re.sub(r"[^A-Za-z0-9_.]+", "-", raw_dir.absolute().name)[:40].strip("-.") or "raw"
    return known[0] if known else root / _FOLDER / f"{name}-{digest[:_DIGITS]}"


def prepared_sets(root: Path, below: Path) -> list[Prepared]:
    """Returns the prepared data sets of one builder, config and version, newest first.

    Args:
      root: folder of prepared data.
      below: NAME/CONFIG/VERSION.
    """
    found = []
    for place in (root, *(root / _FOLDER).glob("*")):
        try:
            time = (place / below / "dataset_info.json").stat().st_mtime
        except OSError:
            continue
        found.append(Prepared(place, read_fingerprint(place / below), time))
    return sorted(found, key=lambda one: one.time, reverse=True)


def load_digests(root: Path) -> dict[str, str]:
    """Reads the digests of raw folders seen before, see `fingerprint`; empty if damaged."""
    try:
        seen = json.loads((root / _FOLDER / _SEEN).read_text())
    except (OSError, ValueError):
        return {}
    return {str(k): str(v) for k, v in seen.items()} if isinstance(seen, dict) else {}


def save_digests(root: Path, digests: dict[str, str]) -> None:
    """Writes the digests of raw folders seen so far.

    Raises:
      OSError: the folder cannot be written to.
    """
    (root / _FOLDER).mkdir(parents=True, exist_ok=True)
    write_text(root / _FOLDER / _SEEN, json.dumps(digests, indent=0) + "\n")

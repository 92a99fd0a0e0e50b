"""Locks the splits test and locked: evaluating them needs an explicit flag and is recorded.

A test result is valid only as long as nothing was chosen by it. So such a split needs an explicit
unlock, each evaluation is recorded in the workdir, and every later report of that run says so.
"""

import datetime
import json
from pathlib import Path
from typing import Any

from boneage_jax.config import LOCKED
from boneage_jax.errors import InputError
from boneage_jax.json_file import read_json
from boneage_jax.storage.safe_write import write_text

_NOTE = "test_unlocked.json"


def check_unlocked(split: str, unlock: bool) -> None:
    """Raises InputError for no name of a split, or a locked one without unlocking it."""
    if not isinstance(split, str) or not split:
        raise InputError(f"split={split!r} must be the name of a split, e.g. 'validation'")
    if split in LOCKED and not unlock:
        raise InputError(
            f"--split={split} is locked: choose everything on the validation split first, then add "
            "--unlock_test; it is recorded in the workdir and in every later report"
        )


def openings(workdir: Path) -> list[dict[str, Any]]:
    """Returns the test evaluations so far: `time` (UTC), `split`, `step`, and `mae` with ages.

    Raises:
      InputError: the record is damaged.
    """
    path = workdir / _NOTE
    try:
        noted = read_json(path)
    except FileNotFoundError:
        return []
    if not isinstance(noted, list) or not all(isinstance(row, dict) for row in noted):
        raise InputError(f"{path} is damaged: expected a list; it records test evaluations")
    return noted


def note_opening(workdir: Path, split: str, step: int, metrics: dict[str, Any]) -> None:
    """Adds one evaluation of a locked split to the record, which is written atomically.

    Raises:
      InputError: the record cannot be written.
    """
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    rows = [*openings(workdir), {"time": now, "split": split, "step": step} | metrics]
    try:
        write_text(workdir / _NOTE, json.dumps(rows, indent=1) + "\n")
    except OSError as error:
        raise InputError(
            f"{workdir / _NOTE} cannot be written ({error.strerror}); without this record the "
            f"evaluation of the split {split} is not reported"
        ) from error

"""The test split is locked: looking at it is a decision, and is written down.

A result on a test split means what it says only while nothing was chosen by it. So it is opened by
an explicit word, each opening is noted in the workdir, and every later report of that run says so.
"""

import datetime
import json
from pathlib import Path
from typing import Any

from boneage_jax.errors import InputError
from boneage_jax.storage.safe_write import write_text

TEST = "test"
_NOTE = "test_unlocked.json"


def check_unlocked(split: str, unlock: bool) -> None:
    """Raises InputError where the test split is asked for without the word that opens it."""
    if split == TEST and not unlock:
        raise InputError(
            "--split=test is locked: choose everything on the validation split first, then add "
            "--unlock_test; it is recorded in the workdir and in every later report"
        )


def openings(workdir: Path) -> list[dict[str, Any]]:
    """When the test split was evaluated: `time` (UTC), `step`, `mae` where there are ages.

    Raises:
      InputError: the record is damaged.
    """
    path = workdir / _NOTE
    try:
        noted = json.loads(path.read_text())
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}; it records test evaluations") from error
    if not isinstance(noted, list) or not all(isinstance(row, dict) for row in noted):
        raise InputError(f"{path} is damaged: expected a list; it records test evaluations")
    return noted


def note_opening(workdir: Path, step: int, metrics: dict[str, Any]) -> None:
    """Adds one opening to the record, which is never half-written."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    rows = [*openings(workdir), {"time": now, "step": step} | metrics]
    try:
        write_text(workdir / _NOTE, json.dumps(rows, indent=1) + "\n")
    except OSError as error:
        raise InputError(
            f"{workdir / _NOTE} cannot be written ({error.strerror}): the test split stays locked"
        ) from error

"""Checks that the processes of a job share one workdir.

With a local folder on each machine, every process would use its own newest checkpoint: they would
take different numbers of steps and then wait for each other forever.
"""

import contextlib
import secrets
import time
from collections.abc import Callable
from pathlib import Path

from boneage_jax.errors import InputError
from boneage_jax.runtime.distributed import place, said_by_all, store
from boneage_jax.storage.bucket import checkpoint_folder, pull
from boneage_jax.storage.safe_write import writing

_SEEN_WITHIN = 90.0  # seconds; NFS caches for up to 60 that a file does not exist
_REMEDY = "--workdir must be a folder that all processes share, or gs://BUCKET/PATH"


def check_shared(workdir: Path, seen_within: float = _SEEN_WITHIN) -> None:
    """Checks that all processes of the job see the same folder. Collective: waits for all.

    A workdir in a bucket is always shared.

    Args:
      workdir: exists on the first process.
      seen_within: seconds after which a file that does not appear counts as missing.

    Raises:
      InputError: a process sees another folder; raised on all processes.
    """
    if store() is None:
        return
    in_bucket = checkpoint_folder(workdir).parent != workdir.absolute()
    with contextlib.ExitStack() as afterwards:
        own = "" if in_bucket or place()[0] else _leave_note(workdir, afterwards)
        note = said_by_all("workdir", f"={own}")[0].removeprefix("=")
        seen = not note or _appears(workdir / note, seen_within)
        answers = said_by_all("workdir seen", "yes" if seen else "no")
    missing = [str(number) for number, answer in enumerate(answers) if answer == "no"]
    if missing:
        raise InputError(
            f"{_REMEDY}; what process 0 writes to {workdir}, process {', '.join(missing)} does not "
            "see"
        )


def _leave_note(workdir: Path, afterwards: contextlib.ExitStack) -> str:
    """Writes an empty file, to be removed later, and returns its name."""
    # A name that nobody has looked up yet, so that no file system has a cached answer.
    path = workdir / f".shared-{secrets.token_hex(8)}"
    with writing(path):
        path.touch()
    afterwards.callback(path.unlink, missing_ok=True)
    return path.name


def check_same_step(
    newest: Callable[[], int | None], seen_within: float = _SEEN_WITHIN
) -> int | None:
    """Checks that all processes find the same newest checkpoint, and returns its step.

    Args:
      newest: looks for the checkpoint; called again if the answers differ, since a network file
        system may return outdated answers for a while.
      seen_within: seconds for which it is called again.

    Raises:
      InputError: they find different ones; raised on all processes.
    """
    end = time.monotonic() + seen_within
    while True:
        step = newest()
        answers = said_by_all("step", f"{step} {time.monotonic() < end}")
        found = [answer.split()[0] for answer in answers]
        if len(set(found)) == 1:
            return step
        if any(answer.endswith("False") for answer in answers):  # same for all processes
            break
        time.sleep(seen_within / 10)
    steps = ", ".join(f"{number}: {answer}" for number, answer in enumerate(found))
    raise InputError(f"{_REMEDY}; the newest checkpoint is another for each process ({steps})")


def catch_up(workdir: Path) -> None:
    """Pulls the files of the first process to the mirrors of all, if the workdir is in a bucket.

    Collective: waits for all processes. The first process must have pushed.
    """
    said_by_all("pushed", "yes")
    if place()[0]:
        pull(workdir)


def _appears(path: Path, within: float) -> bool:
    end = time.monotonic() + within
    while not path.exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True

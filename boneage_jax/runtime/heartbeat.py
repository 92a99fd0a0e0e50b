"""Heartbeats between the processes of a job: a dead one is noticed within `GONE_AFTER` seconds.

If the others wait for it inside a step, Gloo and NCCL may report a closed connection; if they wait
at a barrier of orbax, nothing does. JAX's own service notices after 100 s and aborts each process
with a stack trace and the status of a crash, on which no scheduler restarts it. So each process
writes a rising number to the job's key-value store and watches those of the others.

`boneage_jax.main` starts this as soon as the processes have joined: one that dies while it loads
libraries or looks for its data is noticed like any other.
"""

import itertools
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from boneage_jax.errors import Stopped
from boneage_jax.runtime.distributed import place, store
from boneage_jax.runtime.watchdog import end_process

GONE_AFTER = 40.0  # seconds; below HEARTBEAT_SECONDS of distributed.py
_EVERY = 4.0
_FOLDER = "boneage_jax/heartbeat"
_LEFT = "left"
_beats = itertools.count()  # shared by all runs of a process: numbers never repeat
_active: list["Heartbeat"] = []


class Heartbeat:
    """Context manager that shows that this process is alive and watches the others.

    Does nothing in a job of one process or inside another `Heartbeat`.

    Args:
      gone_after: seconds without a heartbeat after which another process counts as dead,
        `GONE_AFTER` if None.
      end: called with the message instead of ending the process; for tests.
      known: the job's key-value store; for tests.
      expected: number of processes in the job; one that never reports counts as dead. Set it only
        if all processes start this at the same time.
    """

    def __init__(
        self,
        gone_after: float | None = None,
        end: Callable[[str], None] = end_process,
        known: Any = None,
        expected: int = 0,
    ):
        self._gone_after, self._end = gone_after or GONE_AFTER, end
        self._every = min(_EVERY, self._gone_after / 4)
        self._store = known if known is not None else store()
        self._index, self._expected = place()[0], expected
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)

    def __enter__(self) -> "Heartbeat":
        if self._store is not None and not _active:
            _active.append(self)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self not in _active:
            return
        _active.remove(self)
        self._closed.set()
        self._thread.join()
        if error is None or (isinstance(error, Stopped) and not error.alone):
            self._show(_LEFT)  # clean exit: the others do not count it as dead

    def _show(self, value: str) -> str:
        """Publishes a value of this process; returns the error message, "" on success."""
        try:
            self._store.key_value_set(f"{_FOLDER}/{self._index}", value, allow_overwrite=True)
            return ""
        except Exception as error:  # a JaxRuntimeError; not all mean a lost peer
            return str(error)

    def _watch(self) -> None:
        seen: dict[str, str] = {}
        silent: dict[str, float] = {}
        expected = {f"{_FOLDER}/{index}" for index in range(self._expected)}
        clock = time.monotonic()
        while True:
            trouble = self._show(str(next(_beats)))
            try:
                shown = dict(self._store.key_value_dir_get(_FOLDER))
            except Exception as error:
                shown, trouble = {}, str(error)
            now = time.monotonic()
            # Capped: while this process was suspended, it could not see the others.
            passed, clock = min(now - clock, 2 * self._every), now
            for key in expected | seen.keys() | shown.keys():
                if shown.get(key) != seen.get(key) or shown.get(key) == _LEFT:
                    silent[key] = 0.0
                else:
                    silent[key] = silent.get(key, 0.0) + passed
            seen |= shown
            gone = [key for key, seconds in silent.items() if seconds >= self._gone_after]
            if gone:
                names = ", ".join(sorted(key.rpartition("/")[2] for key in gone))
                self._lost(f"no sign of life from process {names} for {self._gone_after:.0f} s")
                return
            if "unavailable" in trouble.lower():
                self._lost("the coordinator, process 0, does not answer")
                return
            if self._closed.wait(self._every):
                return

    def _lost(self, reason: str) -> None:
        self._end(
            f"process {self._index}: another process of the job is gone ({reason}); start all of "
            "them again: the same command goes on from the last checkpoint"
        )

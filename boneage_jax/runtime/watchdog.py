"""Ends a run without progress: a stalled input pipeline, a dead peer, a hung file system.

A thread checks what the loop is waiting for, and since when. Nothing can interrupt a main thread
that waits inside XLA, so the thread ends the process at once, with the status on which schedulers
restart the same command; the run resumes from the last checkpoint.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType

from boneage_jax.runtime.distributed import place

# Limit for compiling, evaluating or saving, in multiples of `stall_seconds`.
PATIENCE = 3.0
NO_LIMIT = float("inf")  # for work that may take hours
COORDINATOR_STAYS = 10.0


_active: list["Watchdog"] = []
_unlimited: list[str] = []  # what active `waiting_without_limit` blocks wait for


def waiting_for(what: str, patience: float = 1.0) -> None:
    """Records what this process waits for from now on; does nothing without an active watchdog.

    Costs well below a microsecond per step.

    Args:
      what: what is waited for, for the message.
      patience: limit in multiples of `stall_seconds`; `NO_LIMIT` for none.
    """
    if _active and not _unlimited:
        _active[0].waits_for(what, patience)


@contextlib.contextmanager
def waiting_without_limit(what: str) -> Iterator[None]:
    """Context manager that lifts the limit, whatever calls of `waiting_for` inside it set.

    For work that may take hours.

    Args:
      what: what is waited for.
    """
    waiting_for(what, NO_LIMIT)
    _unlimited.append(what)
    try:
        yield
    finally:
        _unlimited.pop()


def waiting_for_nothing() -> None:
    """Suspends the active watchdog until the next `waiting_for`."""
    if _active:
        _active[0].rests()


class Watchdog:
    """Context manager that watches a loop which reports what it waits for.

    While it is active, `waiting_for` reaches it from anywhere. A nested one does nothing, unless
    the outer one has no limit.

    Args:
      stall_seconds: how long the loop may wait for one thing; 0 disables the watchdog.
      end: called with the message instead of ending the process; for tests.
    """

    def __init__(self, stall_seconds: float, end: Callable[[str], None] | None = None):
        self._seconds = stall_seconds
        self._end = end or end_process
        self._waits = ("nothing", float("inf"))
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def waits_for(self, what: str, patience: float = 1.0) -> None:
        """Records what the loop waits for from now on, see `waiting_for`."""
        self._waits = (what, self._seconds * patience)  # one assignment: never read half-written

    def rests(self) -> None:
        """Suspends the watchdog until the next `waits_for`."""
        self._waits = ("nothing", float("inf"))

    def __enter__(self) -> "Watchdog":
        if not _active and self._seconds:
            _active.append(self)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closed.set()
        if self in _active:
            _active.remove(self)
            self._thread.join()

    def _watch(self) -> None:
        every = min(self._seconds / 10, 1.0)
        seen, waited, clock = self._waits, 0.0, time.monotonic()
        while not self._closed.wait(every):
            now = time.monotonic()
            # Capped: time in which this process was suspended (Ctrl-Z, a debugger) does not count.
            waited, clock = waited + min(now - clock, 2 * every), now
            if self._waits is not seen:  # a new tuple, even if it is equal
                seen, waited = self._waits, 0.0
            what, limit = seen
            if waited >= limit:
                self._end(
                    f"stalled: waited {limit:.0f} s for {what} (config.stall_seconds="
                    f"{self._seconds:g}); the same command goes on from the last checkpoint"
                )
                return


def end_process(message: str) -> None:
    """Prints one line and ends this process with status 75, whatever its threads are doing.

    The first process of a job is also its coordinator, and JAX aborts the others when it ends. So
    it stays for `COORDINATOR_STAYS` seconds, in which they end with their own message and status.
    """
    os.write(2, f"\n{message}\n".encode())  # unbuffered: the main thread may hold the buffers
    # Flushing may block on the hung disk.
    flush = threading.Thread(target=_flush, daemon=True)
    flush.start()
    flush.join(5)
    index, count = place()  # `jax.process_index` may wait for the devices of the others
    if count > 1 and index == 0:
        time.sleep(COORDINATOR_STAYS)
    os._exit(os.EX_TEMPFAIL)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()

"""Ends a run without progress: a stalled input pipeline, a dead peer, a hung file system.

A thread looks at what the loop waits for, and since when. Nothing can interrupt a main thread that
waits inside XLA, so the process ends there and then, with the status upon which schedulers start
the same command again; it goes on from the last checkpoint.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType

from boneage_jax.runtime.distributed import place

# Limit of what compiles, evaluates or saves, in multiples of `stall_seconds`.
PATIENCE = 3.0
NO_LIMIT = float("inf")  # for what may take hours in good order
COORDINATOR_STAYS = 10.0


_active: list["Watchdog"] = []
_unlimited: list[str] = []  # what is waited for without a limit


def waiting_for(what: str, patience: float = 1.0) -> None:
    """Notes what this process waits for from now on; does nothing where no watchdog is on.

    Costs well below a microsecond of a step.

    Args:
      what: what is waited for, for the message.
      patience: limit in multiples of `stall_seconds`; `NO_LIMIT` for none.
    """
    if _active and not _unlimited:
        _active[0].waits_for(what, patience)


@contextlib.contextmanager
def waiting_without_limit(what: str) -> Iterator[None]:
    """Within, there is no limit, whatever parts note by `waiting_for`: this may take hours.

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
    """Watches over a loop that says what it waits for; also a context manager.

    Within one of them `waiting_for` reaches it from anywhere. One within another does nothing,
    unless the outer one has no limit.

    Args:
      stall_seconds: how long the loop may wait for one thing; 0 switches the watch off.
      end: called with the line in place of ending the process; for tests.
    """

    def __init__(self, stall_seconds: float, end: Callable[[str], None] | None = None):
        self._seconds = stall_seconds
        self._end = end or end_process
        self._waits = ("nothing", float("inf"))
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def waits_for(self, what: str, patience: float = 1.0) -> None:
        """Notes what the loop waits for from now on, see `waiting_for`."""
        self._waits = (what, self._seconds * patience)  # one assignment: never half-read

    def rests(self) -> None:
        """Suspends the watch until the next `waits_for`."""
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
            # A process that was itself suspended (Ctrl-Z, a debugger) has not waited meanwhile.
            waited, clock = waited + min(now - clock, 2 * every), now
            if self._waits is not seen:  # a new tuple, even where it says the same
                seen, waited = self._waits, 0.0
            what, limit = seen
            if waited >= limit:
                self._end(
                    f"stalled: waited {limit:.0f} s for {what} (config.stall_seconds="
                    f"{self._seconds:g}); the same command goes on from the last checkpoint"
                )
                return


def end_process(message: str) -> None:
    """Prints one line and ends this process with status 75, whatever its threads do.

    The first process of a job is also its coordinator, at whose end JAX aborts the others: it stays
    for `COORDINATOR_STAYS` seconds, in which they come to their own line and status.
    """
    os.write(2, f"\n{message}\n".encode())  # bare: the main thread may hold the buffers
    # Flushing may wait for the very disk that hangs.
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

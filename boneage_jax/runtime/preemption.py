"""Ends runs early and cleanly: on SIGTERM, or when their time is up.

A scheduler that takes a machine away sends SIGTERM some time before. The loop then finishes its
current step, saves a checkpoint and exits with `EX_TEMPFAIL`, on which schedulers restart the same
command; the run resumes from that checkpoint and ends with the same parameters as without the stop.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

import jax
import numpy as np
from jax.experimental import multihost_utils

from boneage_jax.errors import Stopped


class Stopping:
    """Whether the run has been asked to end, and why.

    Args:
      max_seconds: time limit of the run, counted from here; 0 for none.
    """

    def __init__(self, max_seconds: float = 0.0):
        self._deadline = time.monotonic() + max_seconds if max_seconds else float("inf")
        self._max_seconds = max_seconds
        self._signalled = self._deferred = False

    @property
    def reason(self) -> str:
        """Why the run must end, "" to continue."""
        if self._signalled:
            return "SIGTERM"
        if time.monotonic() >= self._deadline:
            return f"config.max_seconds={self._max_seconds:g} are over"
        return ""

    def reason_for_all(self, step: int, every: int) -> str:
        """Returns the reason to end; after the same step, all processes agree whether there is one.

        Collective: with several processes, call after every step. They communicate only at every
        `every`-th step, since each time costs a wait for the devices.

        Args:
          step: optimizer updates done.
          every: steps between two exchanges.
        """
        if jax.process_count() == 1:
            return self.reason
        if step % every:
            return ""
        asked = multihost_utils.process_allgather(np.array([bool(self.reason)]))
        return (self.reason or "another process was asked to end") if asked.any() else ""

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Context manager that only records SIGTERM.

        Outside it, with nothing to save, SIGTERM ends the run at once.
        """
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # Unbuffered: the signal may have interrupted a buffered write.
        os.write(2, b"\nSIGTERM: ending after this step\n" if self._deferred else b"\nSIGTERM\n")
        again, self._signalled = self._signalled, True
        if again or not self._deferred:
            raise Stopped(
                "stopped by SIGTERM; the same command goes on from the last checkpoint", alone=True
            )


_active: list[Stopping] = []


@contextlib.contextmanager
def listen(max_seconds: float = 0.0) -> Iterator[Stopping]:
    """Context manager that catches SIGTERM during a training run.

    A nested run (ensemble member, pre-training) shares the outer one's clock. Outside the main
    thread, where Python delivers no signals, only the time limit applies.
    """
    if _active:
        yield _active[-1]
        return
    stopping = Stopping(max_seconds)
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, stopping._on_signal) if main else None
    _active.append(stopping)
    try:
        yield stopping
    finally:
        _active.pop()
        if main:
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)

"""Runs that end early in good order: on SIGTERM, or when their time is up.

A scheduler that takes a machine away sends SIGTERM some time before. The loop then finishes the
step it is in, saves a checkpoint and ends with `EX_TEMPFAIL`, upon which schedulers start the same
command again; the run goes on from that checkpoint and ends with the parameters it would have had.
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
    """Whether the run has been asked to end, and by what.

    Args:
      max_seconds: time the run may take, counted from here; 0 for any.
    """

    def __init__(self, max_seconds: float = 0.0):
        self._deadline = time.monotonic() + max_seconds if max_seconds else float("inf")
        self._max_seconds = max_seconds
        self._signalled = self._deferred = False

    @property
    def reason(self) -> str:
        """Why the run shall end, "" while it shall not."""
        if self._signalled:
            return "SIGTERM"
        if time.monotonic() >= self._deadline:
            return f"config.max_seconds={self._max_seconds:g} are over"
        return ""

    def reason_for_all(self, step: int, every: int) -> str:
        """The same on every process of the job, after the same step.

        With several processes they ask each other, at every `every`-th step alone: each time costs
        a wait for the devices.

        Args:
          step: optimizer updates done.
          every: steps between two questions.
        """
        if jax.process_count() == 1:
            return self.reason
        if step % every:
            return ""
        asked = multihost_utils.process_allgather(np.array([bool(self.reason)]))
        return (self.reason or "another process was asked to end") if asked.any() else ""

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Within, SIGTERM is only noted; elsewhere, with nothing to save, it ends the run."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # Written bare: a buffered write may be what the signal has interrupted.
        os.write(2, b"\nSIGTERM: ending after this step\n" if self._deferred else b"\nSIGTERM\n")
        again, self._signalled = self._signalled, True
        if again or not self._deferred:
            raise Stopped(
                "stopped by SIGTERM; the same command goes on from the last checkpoint", alone=True
            )


_active: list[Stopping] = []


@contextlib.contextmanager
def listen(max_seconds: float = 0.0) -> Iterator[Stopping]:
    """Catches SIGTERM for a training; one within another (members, pre-training) shares its clock.

    Outside the main thread, where Python delivers no signals, only the clock counts.
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

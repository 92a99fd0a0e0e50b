"""Supervision of a run in one context manager: early end, lost peers, stalls."""

import contextlib
from collections.abc import Iterator

from boneage_jax.runtime.distributed import peers
from boneage_jax.runtime.heartbeat import Heartbeat
from boneage_jax.runtime.preemption import Stopping, listen
from boneage_jax.runtime.watchdog import Watchdog, waiting_for_nothing


@contextlib.contextmanager
def supervised(*, max_seconds: float, stall_seconds: float) -> Iterator[Stopping]:
    """Context manager that supervises a run: SIGTERM, time limit, heartbeat, watchdog, lost peers.

    A nested run (ensemble member, pre-training) shares the supervision of the outer one, including
    its limits.

    Args:
      max_seconds: seconds after which the run is asked to end, 0 for no limit.
      stall_seconds: seconds without progress after which the process ends, 0 for no limit.

    Yields:
      `Stopping`, to be queried after each step.

    Raises:
      PeerLost: an error in the block was caused by a dead process of the job.
    """
    with listen(max_seconds) as stopping, Heartbeat(), Watchdog(stall_seconds), peers():
        try:
            yield stopping
        finally:
            waiting_for_nothing()

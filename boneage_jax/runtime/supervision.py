"""One context manager around a run: who may end it, and who notices that it stands still."""

import contextlib
from collections.abc import Iterator

from boneage_jax.runtime.distributed import peers
from boneage_jax.runtime.heartbeat import Heartbeat
from boneage_jax.runtime.preemption import Stopping, listen
from boneage_jax.runtime.watchdog import Watchdog, waiting_for_nothing


@contextlib.contextmanager
def supervised(*, max_seconds: float, stall_seconds: float) -> Iterator[Stopping]:
    """Supervises a run: SIGTERM and time limit, heartbeat, watchdog, errors of lost peers.

    A run within another (a member of an ensemble, a pre-training) shares the supervision of the
    outer one, its limits included.

    Args:
      max_seconds: time until the run is asked to end, 0 for any.
      stall_seconds: time without progress after which the process ends, 0 for any.

    Yields:
      `Stopping`, to be asked after each step whether to end.

    Raises:
      PeerLost: an error within tells of a dead process of the job.
    """
    with listen(max_seconds) as stopping, Heartbeat(), Watchdog(stall_seconds), peers():
        try:
            yield stopping
        finally:
            waiting_for_nothing()

"""Joins the processes of a job, as announced by the cluster or given by flags.

Uses JAX's own multi-controller runtime, `jax.distributed`: every process runs the same program on
its own devices, and the first one is the coordinator.
"""

import contextlib
import importlib.util
import itertools
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from boneage_jax.errors import InputError, PeerLost

# Seconds without a heartbeat after which the coordinator declares a process dead and ends the job:
# the upper bound if the network does not report a dead peer earlier.
HEARTBEAT_SECONDS = 100
_PARTING_SECONDS = 10.0
# Messages of Gloo, NCCL and the coordination service about a lost peer. Their names alone are no
# evidence: a driver mismatch is an NCCL error too, and restarting does not fix it.
_LOST = re.compile(
    r"connection (closed|reset) by (remote )?peer|broken pipe"
    r"|application timeout caused pair closure|timed out waiting .*operation to complete"
    r"|gloo.*(connection refused|connect timeout|socket closed)|remote process exit"
    r"|heartbeat timeout|stopped sending heartbeats|(is|are|as) unhealthy|not healthy"
    r"|barrier timed out|already in error before the barrier|getkeyvalue\(\) timed out"
    r"|coordination service (has|is|to) (been )?(shut|stop)|service is shutting down"
    r"|failed to send rpc to coordination service|agent .*currently in error"
    r"|(unavailable|deadline.exceeded).*coordinationservice/",
    re.DOTALL,
)
_LONGEST = 1500  # characters quoted from another library's message
_GRACE = 60  # seconds that JAX waits beyond our own timeout
_asked = itertools.count()  # numbers all calls of `said_by_all`


def announced_by(environ: Mapping[str, str], devices: Path = Path("/dev")) -> str:
    """Returns the cluster that announces this process as part of a job, "" if none does.

    Args:
      environ: environment variables.
      devices: folder of device files, where a TPU VM lists its chips.
    """
    if int(environ.get("SLURM_NTASKS") or 1) > 1 and "SLURM_STEP_NODELIST" in environ:
        return "SLURM"
    if int(environ.get("OMPI_COMM_WORLD_SIZE") or 1) > 1:
        return "Open MPI"
    if "JAX_COORDINATOR_ADDRESS" in environ or "MEGASCALE_COORDINATOR_ADDRESS" in environ:
        return "the coordinator's address"
    # One chip of a larger slice is useless alone, so a TPU VM always queries its metadata.
    chips = any(devices.glob("accel[0-9]*")) or any(devices.glob("vfio/[0-9]*"))
    on_cpu = environ.get("JAX_PLATFORMS", "tpu").startswith("cpu")
    if chips and importlib.util.find_spec("libtpu") and not on_cpu:
        return "Cloud TPU"
    return ""


def join(coordinator: str = "", processes: int = 0, process: int = -1, timeout: int = 300) -> None:
    """Makes this process part of its job; call before anything queries the devices.

    Without arguments the cluster decides; if none announces itself, the process runs alone.

    Args:
      coordinator: HOST:PORT of the first process.
      processes: number of processes.
      process: index of this process, from 0.
      timeout: seconds to wait for the other processes.

    Raises:
      InputError: arguments that do not fit together, or that contradict the cluster.
      PeerLost: the other processes are gone. If they do not join in time, this process exits with
        the same message and status instead, since JAX would abort it with a stack trace.
    """
    given = (bool(coordinator), processes > 0, process >= 0)
    if any(given) != all(given):
        raise InputError(
            "--coordinator=HOST:PORT, --processes=N and --process=I go together; leave all out "
            "where the cluster announces itself"
        )
    if all(given) and process >= processes:
        raise InputError(f"--process={process} must be below --processes={processes}")
    cluster = "" if all(given) else announced_by(os.environ)
    if not (all(given) or cluster):
        return
    where = f"announced by {cluster}" if cluster else f"of {coordinator}"
    missed = f"the processes of the job {where} did not meet"
    with _ends_after(timeout, f"{missed} within {timeout} s; start all of them again"):
        try:
            jax.distributed.initialize(
                coordinator or None,
                processes if all(given) else None,
                process if all(given) else None,
                initialization_timeout=timeout + _GRACE,
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            )
        except (ValueError, RuntimeError) as error:
            if is_lost_peer(error):
                raise PeerLost(f"{missed} ({_words(error)}); start all of them again") from error
            raise InputError(f"{missed}: {_words(error)}") from error


@contextlib.contextmanager
def _ends_after(seconds: float, line: str) -> Iterator[None]:
    """Context manager that ends the process with this line and status 75 unless left in time."""
    met = threading.Event()

    def watch() -> None:
        if not met.wait(seconds):
            os.write(2, f"{line}\n".encode())
            os._exit(os.EX_TEMPFAIL)

    threading.Thread(target=watch, name="join", daemon=True).start()
    try:
        yield
    finally:
        met.set()


def place() -> tuple[int, int]:
    """Returns (index, count) of this process in the job it joined.

    Unlike `jax.process_index` this does not initialise the devices, which waits for all processes.
    """
    from jax._src import distributed  # no public API has it

    state = distributed.global_state
    return (0, 1) if state.client is None else (state.process_id, state.num_processes or 1)


def store() -> Any:
    """Returns the key-value store of `jax.distributed`, None for a single process."""
    # multihost_utils and orbax access it the same way.
    from jax._src import distributed

    client = distributed.global_state.client
    alone = place()[1] == 1 or not hasattr(client, "key_value_dir_get")
    return None if alone else client


def said_by_all(topic: str, value: str) -> list[str]:
    """Gathers one string from every process, ordered by index.

    Collective: call in the same order everywhere. Blocks without a timeout, since a process may
    prepare data for hours. `Heartbeat` and `Watchdog` end the wait for one that is gone.

    Args:
      topic: name of the exchange.
      value: string of this process, not empty.
    """
    known = store()
    if known is None:
        return [value]
    index, count = place()
    folder = f"boneage_jax/{topic}/{next(_asked)}"
    known.key_value_set(f"{folder}/{index}", value)
    pause = 0.05
    while True:
        said = {key.rpartition("/")[2]: text for key, text in known.key_value_dir_get(folder)}
        if len(said) == count:
            return [said[str(number)] for number in range(count)]
        time.sleep(pause)
        pause = min(2 * pause, 2.0)


def is_lost_peer(error: BaseException) -> bool:
    """Returns whether an error means that a process of the job died or stopped answering.

    Considers only errors of JAX's runtime and errors they caused: a bucket that resets a connection
    is not a peer.
    """
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, RuntimeError) and _LOST.search(str(found).lower()):
            return True
        found = found.__cause__
    return False


def _words(error: BaseException) -> str:
    return (" ".join(str(error).split()) or repr(error))[:_LONGEST]


@contextlib.contextmanager
def peers() -> Iterator[None]:
    """Context manager that turns an error caused by a dead process of the job into `PeerLost`."""
    try:
        yield
    except Exception as error:
        index, count = place()
        if count == 1 or isinstance(error, InputError) or not is_lost_peer(error):
            raise
        raise PeerLost(
            f"process {index}: another process of the job is gone ({_words(error)}); start all of "
            "them again: the same command goes on from the last checkpoint"
        ) from error


@contextlib.contextmanager
def parting() -> Iterator[None]:
    """Context manager for a command: a failing process and the others do not block each other.

    At exit a process of a job waits for all others, up to 300 s. One that ends early with a nonzero
    status waits only 10 s here and exits; the others, in the middle of a step, then find a closed
    connection.
    """
    try:
        yield
    except BaseException as error:
        status = error.code if isinstance(error, SystemExit) else 1
        if status in (0, None) or jax.distributed.is_initialized() is False:
            raise
        if not isinstance(error, SystemExit):
            traceback.print_exc()
        thread = threading.Thread(target=_part, daemon=True)
        thread.start()
        thread.join(_PARTING_SECONDS)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else 1)


def _part() -> None:
    with contextlib.suppress(Exception):
        jax.distributed.shutdown()

"""The processes of one job find each other: by what the cluster says of itself, or by flags.

The runtime is JAX's own multi-controller one, `jax.distributed`: every process runs the same
program on its own devices, and the first one is the coordinator.
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

# Seconds without a sign of life after which the coordinator gives a process up and ends the job:
# the bound where the network does not report a dead peer before.
HEARTBEAT_SECONDS = 100
_PARTING_SECONDS = 10.0
# What Gloo, NCCL and the coordination service say of a peer that is gone. Their names alone say
# nothing: a driver that does not fit is an error of NCCL too, and starting again does not mend it.
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
_LONGEST = 1500  # characters of another library's words in our line
_GRACE = 60  # seconds that JAX waits longer than we do
_asked = itertools.count()  # over all questions of `said_by_all`


def announced_by(environ: Mapping[str, str], devices: Path = Path("/dev")) -> str:
    """Which cluster says that this process is one of a job, "" where none does.

    Args:
      environ: environment variables.
      devices: folder of device files, in which a TPU VM has those of its chips.
    """
    if int(environ.get("SLURM_NTASKS") or 1) > 1 and "SLURM_STEP_NODELIST" in environ:
        return "SLURM"
    if int(environ.get("OMPI_COMM_WORLD_SIZE") or 1) > 1:
        return "Open MPI"
    if "JAX_COORDINATOR_ADDRESS" in environ or "MEGASCALE_COORDINATOR_ADDRESS" in environ:
        return "the coordinator's address"
    # One chip of a larger slice is of no use alone, so a TPU VM always asks its metadata.
    chips = any(devices.glob("accel[0-9]*")) or any(devices.glob("vfio/[0-9]*"))
    on_cpu = environ.get("JAX_PLATFORMS", "tpu").startswith("cpu")
    if chips and importlib.util.find_spec("libtpu") and not on_cpu:
        return "Cloud TPU"
    return ""


def join(coordinator: str = "", processes: int = 0, process: int = -1, timeout: int = 300) -> None:
    """Makes this process one of its job; to be called before anything asks for devices.

    Without arguments the cluster is asked; where none announces itself, this process is alone.

    Args:
      coordinator: HOST:PORT of the first process.
      processes: how many there are.
      process: which this one is, from 0.
      timeout: seconds to wait for the others.

    Raises:
      InputError: arguments that do not go together, or that the cluster does not bear out.
      PeerLost: the others are gone. Where they do not come in time this process ends with the same
        line and status, since JAX would abort it with a stack trace.
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
    """Ends the process with this line and status 75 unless the block is left in time."""
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
    """(index, count) of this process in the job, as it joined.

    Unlike `jax.process_index` this does not start the devices, which waits for all processes.
    """
    from jax._src import distributed  # no public name leads to it

    state = distributed.global_state
    return (0, 1) if state.client is None else (state.process_id, state.num_processes or 1)


def store() -> Any:
    """The key-value store of `jax.distributed`, None where there is one process."""
    # multihost_utils and orbax take the same way.
    from jax._src import distributed

    client = distributed.global_state.client
    alone = place()[1] == 1 or not hasattr(client, "key_value_dir_get")
    return None if alone else client


def said_by_all(topic: str, value: str) -> list[str]:
    """Gathers one string from every process, by index.

    Collective: call in the same order everywhere. Blocks without a timeout: a process may be
    preparing data for hours. `Heartbeat` and `Watchdog` end the wait for one that is gone.

    Args:
      topic: names the exchange.
      value: of this process, not empty.
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
    """Whether an error tells of a process of the job that died, or that stopped answering.

    Only errors of JAX's runtime and what they caused: a bucket that resets a connection is no peer.
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
    """Within, an error that tells of a dead process of the job becomes `PeerLost`."""
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
    """Around a door: a process that fails does not keep the others, nor do they keep it.

    At its end a process of a job waits for all others, up to 300 s. One that ends early, with any
    status but 0, waits 10 s here and leaves; the others, in the middle of a step, then find a
    closed connection.
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

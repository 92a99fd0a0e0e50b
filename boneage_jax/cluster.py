"""The processes of one job find each other: by what the cluster says of itself, or by flags.

The runtime is JAX's own multi-controller one, `jax.distributed`: every process runs the same
program on its own devices, and the first one is the coordinator.
"""

import argparse
import contextlib
import os
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import jax

from boneage_jax.errors import InputError, PeerLost

# Seconds without a sign of life after which the coordinator gives a process up and ends the job:
# the bound where the network does not report a dead peer before.
HEARTBEAT_SECONDS = 100
_PARTING_SECONDS = 10.0
# What Gloo, NCCL and the coordination service say of a peer that is gone.
_LOST = (
    *("connection closed by peer", "connection reset by peer", "connection refused"),
    *("broken pipe", "remote process", "unavailable", "deadline_exceeded", "deadline exceeded"),
    *("gloo", "nccl", "coordination", "heartbeat", "barrier"),
)


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
    if chips and find_spec("libtpu") and not environ.get("JAX_PLATFORMS", "tpu").startswith("cpu"):
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
      InputError: arguments that do not go together, or the others did not come in time.
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
    try:
        jax.distributed.initialize(
            coordinator or None,
            processes if all(given) else None,
            process if all(given) else None,
            initialization_timeout=timeout,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0][:300]
        where = f"announced by {cluster}" if cluster else f"of {coordinator}"
        raise InputError(f"the processes of the job {where} did not meet: {reason}") from error


@contextlib.contextmanager
def peers() -> Iterator[None]:
    """Within, an error that tells of a dead process of the job becomes `PeerLost`."""
    try:
        yield
    except Exception as error:
        words = str(error).lower()
        ours = jax.process_count() == 1 or isinstance(error, InputError)
        if ours or not any(word in words for word in _LOST):
            raise
        reason = " ".join(str(error).split())[:200]
        raise PeerLost(
            f"process {jax.process_index()}: another process of the job is gone ({reason}); start "
            "all of them again: the same command goes on from the last checkpoint"
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


def join_as_told(argv: Sequence[str]) -> list[str]:
    """Joins by the flags --coordinator, --processes and --process; returns the other arguments.

    Raises:
      InputError: see `join`; also a number that is none.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--coordinator", default="")
    parser.add_argument("--processes", type=int, default=0)
    parser.add_argument("--process", type=int, default=-1)
    try:
        told, rest = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise InputError(f"command line: {error}") from error
    join(told.coordinator, told.processes, told.process)
    return rest

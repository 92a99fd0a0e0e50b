"""Joins the processes of a job, as announced by their launcher or given by flags.

Uses JAX's own multi-controller runtime, `jax.distributed`: every process runs the same program on
its own devices, and the first one is the coordinator.
"""

import contextlib
import itertools
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

import jax

from boneage_jax.errors import InputError, PeerLost
from boneage_jax.runtime.launcher import (
    Announcement,
    announcement,
    check_address,
    task_of_launcher,
)

# Seconds without a heartbeat after which the coordinator declares a process dead and ends the job:
# the upper bound if the network does not report a dead peer earlier.
HEARTBEAT_SECONDS = 100
_PARTING_SECONDS = 10.0
_SILENT_SECONDS = 3.0  # before this process says that it waits for others
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


def join(
    coordinator: str = "",
    processes: int = 0,
    process: int = -1,
    *,
    alone: bool = False,
    timeout: int = 300,
    silent_seconds: float = _SILENT_SECONDS,
) -> None:
    """Makes this process part of its job; call before anything queries the devices.

    Without arguments the launcher decides; if none announces a job, the process runs alone.

    Args:
      coordinator: HOST:PORT of the first process.
      processes: number of processes.
      process: index of this process, from 0.
      alone: run alone, whatever the environment announces.
      timeout: seconds to wait for the other processes.
      silent_seconds: seconds to wait before standard error says what for.

    Raises:
      InputError: arguments that do not fit together, or processes that cannot find each other.
      PeerLost: the other processes are gone. If they do not join in time, this process exits with
        the same message and status instead, since JAX would abort it with a stack trace.
    """
    if processes < 0 or process < -1:
        raise InputError(
            f"--processes={processes} and --process={process} must not be negative; processes "
            "count from 0"
        )
    given = (bool(coordinator), processes > 0, process >= 0)
    if any(given) != all(given):
        raise InputError(
            "--coordinator=HOST:PORT, --processes=N and --process=I go together; leave all out "
            "where the cluster announces itself"
        )
    if all(given) and process >= processes:
        raise InputError(f"--process={process} must be below --processes={processes}")
    if all(given):
        check_address(coordinator, "--coordinator")
    if alone and any(given):
        raise InputError("--alone and --coordinator contradict each other; leave one out")
    if alone:
        return
    announced = None if all(given) else announcement(os.environ)
    if announced is None and not all(given):
        return
    # Beside flags, a launcher tells at most which GPU of its node a process takes.
    known = announced or task_of_launcher(os.environ) or Announcement("", "", "deactivate")
    where = f"announced by {announced}" if announced else f"of {coordinator}"
    missed = f"the processes of the job {where} did not meet"
    hint = "; --alone trains without them" if announced else ""
    remedy = f"start all of them again{hint}"
    waits = f"waiting up to {timeout} s for the other processes of the job {where}{hint}"
    os.environ.setdefault("grpc_proxy", "")  # proxies are not for the machines of a job
    jax.config.update("jax_check_proxy_envs", False)
    with _ends_after(timeout, f"{missed} within {timeout} s; {remedy}", waits, silent_seconds):
        try:
            jax.distributed.initialize(
                coordinator or None,
                processes if all(given) else known.processes or None,
                process if all(given) else None,
                cluster_detection_method=known.method,
                initialization_timeout=timeout + _GRACE,
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            )
        except Exception as error:  # the ways of JAX to find a cluster raise many types
            if is_lost_peer(error):
                raise PeerLost(f"{missed} ({_words(error)}); {remedy}") from error
            raise InputError(f"{missed}: {_words(error)}{hint}") from error


@contextlib.contextmanager
def _ends_after(seconds: float, line: str, waits: str, silent_seconds: float) -> Iterator[None]:
    """Context manager that ends the process with this line and status 75 unless left in time.

    Args:
      seconds: time limit.
      line: last words of the process.
      waits: printed after `silent_seconds`.
      silent_seconds: see `join`.
    """
    met = threading.Event()

    def watch() -> None:
        if met.wait(min(silent_seconds, seconds)):
            return
        os.write(2, f"{waits}\n".encode())
        if not met.wait(max(seconds - silent_seconds, 0)):
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

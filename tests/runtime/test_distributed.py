"""How the processes of a job find each other."""

import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest
from jax._src import distributed  # which holds what JAX knows of its job

from boneage_jax import main
from boneage_jax.errors import InputError, PeerLost
from boneage_jax.runtime.distributed import is_lost_peer, join, peers, place
from tests.runtime.test_launcher import TASK


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--coordinator=h:1"], "go together"),
        (["--processes=2", "--process=0"], "go together"),
        (["--coordinator=h:1", "--processes=2", "--process=2"], "must be below"),
        (["--processes=-2"], "must not be negative"),
        *(
            ([f"--coordinator={address}", "--processes=2", "--process=0"], "must be HOST:PORT")
            for address in ("host", "host:", ":1", "host:abc", "host:99999", "host:0", "a b:1")
        ),
        (["--process=-2"], "must not be negative"),
        (["--coordinator=h:1", "--processes=2", "--process=0", "--alone"], "contradict"),
        (["--coordinator=h:1", "--processes=two", "--process=0"], "invalid int value: 'two'"),
    ],
)
def test_flags_that_do_not_go_together(flags, says):
    with pytest.raises(InputError, match=says):
        main.main([*flags, "--config=configs/cls.py"])


def test_without_a_launcher_a_process_is_alone(monkeypatch):
    for name in (*TASK, "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "JAX_COORDINATOR_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    join()
    assert place() == (0, 1)


def test_a_flag_overrules_what_a_launcher_left_behind(monkeypatch):
    for name, value in (TASK | {"PMI_SIZE": "4"}).items():
        monkeypatch.setenv(name, value)
    join(alone=True)
    assert place() == (0, 1)


@pytest.fixture
def initialized(monkeypatch):
    """What `jax.distributed.initialize` was called with."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: calls.append((a, k)))
    return calls


@pytest.mark.parametrize(
    ("environ", "flags", "place", "method"),
    [
        (TASK, (), (None, 4, None), "slurm"),
        (TASK | {"SLURM_STEP_NUM_TASKS": "2"}, (), (None, 2, None), "slurm"),
        (TASK, ("h:1", 4, 3), ("h:1", 4, 3), "slurm"),  # for its GPU on the node
        # A pod, whose API would be asked, and a single task, which would get a single GPU.
        ({"KUBERNETES_SERVICE_HOST": "x"}, ("h:1", 2, 1), ("h:1", 2, 1), "deactivate"),
        (TASK | {"SLURM_STEP_NUM_TASKS": "1"}, ("h:1", 2, 1), ("h:1", 2, 1), "deactivate"),
        ({"JAX_COORDINATOR_ADDRESS": "h:1"}, (), (None, None, None), None),
    ],
)
def test_what_jax_is_asked_for(environ, flags, place, method, initialized, monkeypatch):
    for name, value in (environ | {"http_proxy": "http://proxy:1"}).items():
        monkeypatch.setenv(name, value)
    proxy = "grpc_proxy"
    monkeypatch.setenv(proxy, "")  # so that it is taken back
    monkeypatch.delenv(proxy)
    join(*flags)
    [(arguments, options)] = initialized
    assert (arguments, options["cluster_detection_method"]) == (place, method)
    assert os.environ[proxy] == ""


def test_a_launcher_whose_other_processes_do_not_exist(monkeypatch, capfd):
    """The waiting line comes early and says which variable made it wait, and what helps."""

    def fails(*args, **options):
        time.sleep(0.3)
        raise KeyError("SLURM_LOCALID")

    monkeypatch.setattr(jax.distributed, "initialize", fails)
    for name, value in TASK.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="did not meet: 'SLURM_LOCALID'; --alone trains"):
        join(silent_seconds=0.1)
    assert capfd.readouterr().err == (
        "waiting up to 300 s for the other processes of the job announced by SLURM "
        "(SLURM_STEP_NUM_TASKS=4); --alone trains without them\n"
    )


# What Gloo, NCCL and the coordination service of jaxlib 0.10 write.
LOST = [
    "INTERNAL: Gloo all-reduce failed: [external/gloo/gloo/transport/tcp/pair.cc:547] Connection "
    "closed by peer [10.0.0.2]:40213",
    "UNKNOWN: Gloo all-reduce failed: Read error [10.0.0.2]:40213: Connection reset by peer",
    "UNKNOWN: Gloo AllGather failed: writev [10.0.0.2]:40213: Broken pipe",
    "UNKNOWN: Gloo all-reduce failed: Application timeout caused pair closure",
    "UNKNOWN: Gloo all-reduce failed: Timed out waiting 30000ms for recv operation to complete",
    "INTERNAL: NCCL operation ncclAllReduce() failed: remote process exited or there was a network "
    "error. Last NCCL warning(error) log entry (may be unrelated) ''.",
    "INTERNAL: NCCL operation ncclGroupEnd() failed: unhandled system error. Last NCCL "
    "warning(error) log entry 'socketProgress: Connection closed by remote peer n2<51234>'",
    "DEADLINE_EXCEEDED: Barrier timed out. Id: create_tmp_directory:pre.3::1. This usually happens "
    "because a task triggered the barrier too early or too slowly.",
    "UNAVAILABLE: /job:jax_worker/replica:0/task:1 heartbeat timeout. This indicates that the "
    "remote task has failed, got preempted, or crashed unexpectedly.",
    "UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats): task:1",
    "INTERNAL: Coordination service has been shut down.",
    "INTERNAL: Barrier failed because service is shutting down. Barrier_id: x",
    "FAILED_PRECONDITION: Agent must be in CONNECTED state. It is currently in ERROR.",
    "UNAVAILABLE: Failed to send RPC to coordination service. Either the leader task was "
    "preempted/died/restarted unexpectedly or this task is experiencing network issues.",
    "UNAVAILABLE: failed to connect to all addresses; last error: Connection refused\n\nRPC: "
    "/xla.coordination.CoordinationService/Barrier",
    "DEADLINE_EXCEEDED: GetKeyValue() timed out with key: cpu:gloo/0 and duration: 5m",
]
NO_PEER = [
    "INTERNAL: NCCL operation ncclCommInitRankConfig() failed: unhandled system error (run with "
    "NCCL_DEBUG=INFO for details)",
    "INTERNAL: NCCL operation ncclGroupEnd() failed: invalid usage",
    'UNAVAILABLE: Error reading "gs://bucket/runs/checkpoints/8": 503 Service Unavailable',
    "DEADLINE_EXCEEDED: Error writing gs://bucket/a: Operation timed out after 60000 milliseconds",
    "INVALID_ARGUMENT: Gloo is not supported on this platform",
    "ALREADY_EXISTS: key exists\n\nRPC: /xla.coordination.CoordinationService/InsertKeyValue",
    "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 12884901888 bytes.",
]


@pytest.fixture
def two(monkeypatch):
    state = distributed.State()
    state.process_id, state.num_processes, state.client = 1, 2, object()
    monkeypatch.setattr(distributed, "global_state", state)


@pytest.mark.parametrize("text", LOST)
def test_what_tells_of_a_lost_process(text, two):
    with pytest.raises(PeerLost) as lost, peers():
        raise jax.errors.JaxRuntimeError(text)
    assert " ".join(text.split()) in lost.value.message and "\n" not in lost.value.message
    assert lost.value.code == 75 and lost.value.alone


@pytest.mark.parametrize("text", NO_PEER)
def test_what_starting_again_does_not_mend(text, two):
    with pytest.raises(jax.errors.JaxRuntimeError), peers():
        raise jax.errors.JaxRuntimeError(text)


def test_an_error_may_be_wrapped_and_a_bucket_is_no_peer():
    error = ValueError("saving failed")
    error.__cause__ = jax.errors.JaxRuntimeError(LOST[0])
    assert is_lost_peer(error)
    assert not is_lost_peer(ConnectionResetError("Connection reset by peer"))


def test_processes_that_do_not_meet_are_started_again():
    """JAX would abort with a stack trace and status 134."""
    code = (
        "from boneage_jax.runtime.distributed import join\n"
        "from boneage_jax.cli import exit_status\n"
        "raise SystemExit(exit_status(lambda argv: join('localhost:1', 2, 1, timeout=3)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2], env=os.environ, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 75, done.stderr[-2000:]
    assert "of localhost:1 did not meet within 3 s; start all of them again" in done.stderr
    assert "Traceback" not in done.stderr and "stack trace" not in done.stderr

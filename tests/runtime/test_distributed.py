"""How the processes of a job find each other."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from jax._src import distributed  # which holds what JAX knows of its job

from boneage_jax import main
from boneage_jax.errors import InputError, PeerLost
from boneage_jax.runtime.distributed import announced_by, is_lost_peer, join, peers, place

SLURM = {"SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "n[1-4]"}


@pytest.mark.parametrize(
    ("environ", "cluster"),
    [
        ({}, ""),
        (SLURM, "SLURM"),
        (SLURM | {"SLURM_NTASKS": "1"}, ""),
        ({"SLURM_NTASKS": "4"}, ""),  # the batch script itself, not a task of srun
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "Open MPI"),
        ({"JAX_COORDINATOR_ADDRESS": "h:1"}, "the coordinator's address"),
    ],
)
def test_which_cluster_announces_itself(environ, cluster, tmp_path):
    assert announced_by(environ, tmp_path) == cluster


def test_a_tpu_is_asked_only_where_its_software_and_its_chips_are(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "libtpu")
    assert announced_by({}, tmp_path) == ""
    (tmp_path / "accel0").touch()
    assert announced_by({}, tmp_path) == "Cloud TPU"
    assert announced_by({"JAX_PLATFORMS": "cpu"}, tmp_path) == ""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert announced_by({}, tmp_path) == ""


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--coordinator=h:1"], "go together"),
        (["--processes=2", "--process=0"], "go together"),
        (["--coordinator=h:1", "--processes=2", "--process=2"], "must be below"),
        (["--coordinator=h:1", "--processes=two", "--process=0"], "invalid int value: 'two'"),
    ],
)
def test_flags_that_do_not_go_together(flags, says):
    with pytest.raises(InputError, match=says):
        main.main([*flags, "--config=configs/cls.py"])


def test_without_a_cluster_a_process_is_alone(monkeypatch):
    for name in (*SLURM, "OMPI_COMM_WORLD_SIZE", "JAX_COORDINATOR_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    join()
    assert place() == (0, 1)


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

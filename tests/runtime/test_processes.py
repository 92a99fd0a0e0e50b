"""Jobs of two real processes on loopback, against one process with as many devices."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import tests.support.tiny_backbone  # noqa: F401  (registers the networks)
from boneage_jax.inference.background_removal import Background
from boneage_jax.report.metric_writer import read_metrics
from boneage_jax.training.run import load_run
from tests.support.compiling import xla_flags
from tests.support.tiny_run import TINY_RUN, arguments
from tfds_rsna.hand_phantom.render import make_phantom

ROOT = Path(__file__).parents[2]
LONGEST = 240  # seconds for a job that ends by itself; it takes 15 on an idle machine


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


class Job:
    """Processes of one run; `happens` maps a process to what its environment says.

    Attributes:
      codes, logs: of each process, once `wait` has returned.
    """

    def __init__(self, folder, phantoms, processes, devices, happens=None, **changed):
        self.workdir = folder / "run"
        folder.mkdir(exist_ok=True)
        self._started, self._paths = [], []
        port = free_port()
        for index in range(processes):
            environment = os.environ | {
                "TFDS_DATA_DIR": phantoms,
                "PYTHONPATH": str(ROOT),
                "XLA_FLAGS": xla_flags(devices),
                **((happens or {}).get(index, {})),
            }
            command = [
                sys.executable,
                *TINY_RUN,
                *arguments(self.workdir, **changed),
            ]
            if processes > 1:
                command += [f"--coordinator=localhost:{port}", f"--processes={processes}"]
                command += [f"--process={index}"]
            self._paths.append(folder / f"log{index}")
            with self._paths[-1].open("a") as log:
                self._started.append(
                    subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
                )

    def wait(self):
        """Ends what has not ended in time, and says so by its code."""
        end = time.monotonic() + LONGEST
        for process in self._started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(end - time.monotonic(), 0))
        self.codes = [process.poll() for process in self._started]
        for process in self._started:
            process.kill()
            process.wait()
        self.logs = [path.read_text() for path in self._paths]
        return self


@pytest.fixture(scope="module")
def alone(phantoms, tmp_path_factory):
    """The workdir of a run of one process with four devices, by mode."""
    made = {}

    def of(mode, **changed):
        key = (mode, *changed.items())
        if key not in made:
            folder = tmp_path_factory.mktemp("alone")
            job = Job(folder, phantoms, 1, 4, parallel=mode, **changed).wait()
            assert job.codes == [0], job.logs[0][-3000:]
            made[key] = job.workdir
        return made[key]

    return of


@pytest.fixture
def read():
    """What a workdir says: training losses, validation errors, final parameters."""

    def read(workdir):
        rows = read_metrics(workdir)
        losses = [row["train/loss"] for row in rows if "train/loss" in row]
        errors = [row["validation/mae"] for row in rows if "validation/mae" in row]
        _, state, _ = load_run(workdir, jax.devices()[:1])
        return losses, errors, state.params

    return read


def same(one, other):
    """Equal but for the order of float32 sums: over the devices of a process first, then over
    processes, or over all at once. A few units in the last place (6e-8) a step, eight steps."""
    assert len(one[0]) == len(other[0]) == 8 and len(one[1]) == len(other[1]) == 2
    np.testing.assert_allclose(one[0], other[0], rtol=2e-5)
    np.testing.assert_allclose(one[1], other[1], rtol=2e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one[2], other[2]
    )


@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_two_processes_train_as_one_does(mode, alone, read, phantoms, tmp_path):
    """Also the evaluation: 32 images in batches of 12, the last one padded on both processes."""
    whole = alone(mode)
    notes = {index: {"WRITES": str(tmp_path / f"writes{index}")} for index in range(2)}
    job = Job(tmp_path / "job", phantoms, 2, 2, notes, parallel=mode).wait()
    assert job.codes == [0, 0], "\n".join(job.logs)[-6000:]
    same(read(whole), read(job.workdir))
    # What is written beside the checkpoints, process 0 alone writes.
    written = [set((tmp_path / f"writes{i}").read_text().splitlines()) for i in range(2)]
    own = [{p for p in w if p.startswith(f"{job.workdir}/")} for w in written]
    assert any(p.endswith("report.json.part") for p in own[0])
    assert all("/checkpoints/" in p for p in own[1]), own[1]
    rows = [row["step"] for row in read_metrics(job.workdir) if "train/loss" in row]
    assert rows == [*range(1, 9)]
    assert len(list((job.workdir / "tensorboard").iterdir())) == 1


def test_batch_statistics_of_each_device_by_choice(alone, read, phantoms, tmp_path):
    """The processes read every other image, so without `bn_sync` a device meets other companions
    than it does alone: the statistics differ a little, the schedule and the order do not."""
    options = {"parallel": "pmap", "model__bn_sync": False}
    job = Job(tmp_path / "job", phantoms, 2, 2, **options).wait()
    assert job.codes == [0, 0], "\n".join(job.logs)[-6000:]
    apart, synced = read(job.workdir), read(alone("pmap"))
    np.testing.assert_allclose(apart[0], synced[0], rtol=0.2)
    assert apart[0] != synced[0]


def test_all_processes_roll_back_where_one_met_a_bad_batch(phantoms, tmp_path):
    happens = {1: {"AT": "3", "HAPPENS": "nan"}}
    options = {"parallel": "pmap", "nonfinite": "rollback", "steps": 4}
    job = Job(tmp_path / "job", phantoms, 2, 2, happens, **options).wait()
    assert job.codes == [0, 0], "\n".join(job.logs)[-6000:]
    last = read_metrics(job.workdir)[-1]
    assert (last["step"], last["nonfinite_steps"], last["rollbacks"]) == (4, 1, 1)
    assert "step 4: not finite; back to the checkpoint of step 2" in job.logs[0]


def test_the_others_end_when_one_is_killed_and_the_job_goes_on(alone, read, phantoms, tmp_path):
    """SIGKILL to one of them, then to the end."""
    folder = tmp_path / "job"
    began = time.monotonic()
    killed = Job(folder, phantoms, 2, 2, {1: {"AT": "7", "HAPPENS": "SIGKILL"}}).wait()
    assert killed.codes == [75, -9], "\n".join(killed.logs)[-6000:]
    assert "process 0: another process of the job is gone" in killed.logs[0]
    assert "Traceback" not in killed.logs[0]
    assert time.monotonic() - began < 150
    assert not (killed.workdir / "report.json").exists()
    again = Job(folder, phantoms, 2, 2).wait()
    assert again.codes == [0, 0], "\n".join(again.logs)[-6000:]
    assert "going on from the checkpoint of step" in again.logs[0]
    same(read(alone("jit")), read(again.workdir))


def test_a_job_goes_on_with_another_number_of_processes(alone, read, phantoms, tmp_path):
    """Two processes with two devices each, until SIGTERM; one with four devices; two again."""
    folder = tmp_path / "job"
    for processes, at in ((2, 3), (1, 6)):
        happens = {processes - 1: {"AT": str(at), "HAPPENS": "SIGTERM"}}
        told = Job(folder, phantoms, processes, 4 // processes, happens).wait()
        assert told.codes == [75] * processes, "\n".join(told.logs)[-6000:]
    ended = Job(folder, phantoms, 2, 2).wait()
    assert ended.codes == [0, 0], "\n".join(ended.logs)[-6000:]
    assert "another process was asked to end: saved at step" in ended.logs[0]
    assert ended.logs[0].count("going on from the checkpoint of step") == 2
    same(read(alone("jit")), read(ended.workdir))


def test_the_others_end_when_one_fails_while_it_starts(phantoms, tmp_path):
    """One finds no data, before there is a step or a checkpoint to wait for."""
    (tmp_path / "file").touch()
    began = time.monotonic()
    happens = {1: {"TFDS_DATA_DIR": str(tmp_path / "file")}}
    job = Job(tmp_path / "job", phantoms, 2, 2, happens).wait()
    assert job.codes == [75, 2], "\n".join(job.logs)[-6000:]
    assert "process 0: another process of the job is gone" in job.logs[0]
    assert "error: " in job.logs[1] and "cannot be prepared in" in job.logs[1]
    assert not any(word in log for log in job.logs for word in ("Traceback", "stack trace"))
    assert time.monotonic() - began < 150


def test_the_others_end_when_the_coordinator_is_killed(phantoms, tmp_path):
    job = Job(tmp_path / "job", phantoms, 2, 2, {0: {"AT": "4", "HAPPENS": "SIGKILL"}}).wait()
    assert job.codes[0] == -9 and job.codes[1] not in (0, None), "\n".join(job.logs)[-6000:]


def test_a_stalled_process_ends_the_job(phantoms, tmp_path):
    """Nobody died, so the network says nothing: the watchdogs do."""
    happens = {1: {"AT": "5", "HAPPENS": "hang"}}
    job = Job(tmp_path / "job", phantoms, 2, 2, happens, stall_seconds=10.0).wait()
    assert job.codes == [75, 75], "\n".join(job.logs)[-6000:]
    assert "stalled: waited 10 s for the next batch" in job.logs[1]
    assert "stalled: waited" in job.logs[0] or "is gone" in job.logs[0]


ONE_SEGMENTS = """
import sys
import jax
import tests.support.tiny_backbone
from boneage_jax.inference.background_removal import Background
from boneage_jax.runtime.distributed import join, said_by_all
from tfds_rsna.hand_phantom.render import make_phantom

workdir, port, process = sys.argv[1:]
join(f"localhost:{port}", 2, int(process), timeout=120)
jax.devices()
answer = "waits"
if process == "1":
    background = Background(workdir, "crop")
    answer = str(background(make_phantom(0, 96, "test").image, "0", 32).sum())
print(*said_by_all("done", answer))
"""


def test_one_process_segments_while_the_other_waits(tmp_path):
    """On a shared data folder, one prepares the data, also where a U-Net takes out backgrounds."""
    workdir = ROOT / "tests/inference/old_workdirs/unet"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": xla_flags(2)}
    command = [sys.executable, "-c", ONE_SEGMENTS, workdir, str(free_port())]
    started = [
        subprocess.Popen([*command, str(i)], cwd=ROOT, env=environment, stdout=subprocess.PIPE)
        for i in range(2)
    ]
    try:
        said = [process.communicate(timeout=LONGEST)[0].split() for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    square = Background(workdir, "crop")(make_phantom(0, 96, "test").image, "0", 32)
    assert said == [[b"waits", str(square.sum()).encode()]] * 2

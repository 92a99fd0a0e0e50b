"""Full disks: one clear line, the last checkpoint whole, and the same command goes on."""

import errno
import logging
import mmap
import os
import stat
import subprocess

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from boneage_jax.errors import InputError, Stopped
from boneage_jax.report.metric_writer import read_metrics
from boneage_jax.storage.quiet_orbax import without_late_errors
from boneage_jax.storage.safe_write import (
    cannot_write,
    in_one_piece,
    is_passing,
    is_refused_write,
)
from boneage_jax.training.run import load_run
from tests.support.late_errors import wait_for_late_errors


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting a small file system is refused: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder):
    """Takes every byte that is left but a page, in which a small file can replace another."""
    with (folder / "ballast").open("ab", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError as error:
                assert error.errno == errno.ENOSPC
        file.truncate(file.tell() - mmap.PAGESIZE)


# What does not fit any more, and the file that the line names.
WRITES = {"metrics": "metrics.jsonl", "checkpoint": "checkpoints", "report": "predictions.csv"}


@pytest.mark.parametrize("what", WRITES)
def test_a_full_disk_costs_nothing_that_was_saved(what, small_disk, tiny_train, monkeypatch, capfd):
    options = {"folder": small_disk, "model__hidden": 2048}  # 200 kB a checkpoint
    workdir = small_disk / "run"
    if what == "report":  # as after a kill at the end of all
        tiny_train(**options)
        for name in ("calibration.npz", "predictions.csv", "report.json"):
            (workdir / name).unlink()
    else:  # up to a checkpoint
        with monkeypatch.context() as patch:
            patch.setattr(ocp.CheckpointManager, "reached_preemption", lambda self, step: step == 2)
            with pytest.raises(Stopped):
                tiny_train(**options)
    if what == "metrics":  # a log of several pages
        log = workdir / "metrics.jsonl"
        log.write_text('{"step": 1}\n' * mmap.PAGESIZE + log.read_text())
    fill(small_disk)
    with pytest.raises(InputError) as error:
        tiny_train(**options)
    line = str(error.value)
    assert "Traceback" not in capfd.readouterr().err
    assert (
        WRITES[what] in line
        and "free some space" in line
        and "goes on" in line
        and "\n" not in line
    )
    saved = [int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()]
    assert max(saved) == (8 if what == "report" else 2)
    (small_disk / "ballast").unlink()
    report, _ = tiny_train(**options)
    assert report["compute"]["train_flops"] > 0
    _, whole = tiny_train("whole", model__hidden=2048)
    jax.tree.map(np.testing.assert_array_equal, load_run(whole)[1], load_run(workdir)[1])
    losses = [
        [r["train/loss"] for r in read_metrics(w) if "train/loss" in r] for w in (whole, workdir)
    ]
    assert losses[0] == losses[1]


def test_what_orbax_logs_after_a_failure_is_dropped_for_a_while():
    wait_for_late_errors()
    logger = logging.getLogger("absl")
    late = [
        logging.LogRecord("absl", logging.ERROR, f"/site/{name}/a.py", 1, "late", (), None)
        for name in ("orbax", "grain")
    ]
    with without_late_errors:
        assert [bool(logger.filter(record)) for record in late] == [False, True]
    assert all(logger.filter(record) for record in late)


def test_a_file_never_takes_the_place_of_a_pipe_or_device(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with in_one_piece(path) as part:
        part.write_text("rows")
    assert stat.S_ISFIFO(path.stat().st_mode) and os.listdir(tmp_path) == ["pipe"]
    assert os.read(reader, 99) == b"rows"
    os.close(reader)


def test_errors_without_a_number_are_told_apart():
    full = ValueError("RESOURCE_EXHAUSTED: Error writing x [No space left on device]")
    assert is_refused_write(full) and "free some space" in str(cannot_write("x", full))
    wrapped = RuntimeError("saving failed")
    wrapped.__cause__ = OSError(errno.EACCES, "Permission denied")
    assert is_refused_write(wrapped)
    assert "make it writable" in str(cannot_write("x", wrapped.__cause__))
    assert not is_refused_write(ValueError("shapes differ"))
    assert "raise ulimit -n, then" in str(cannot_write("x", OSError(errno.EMFILE, "")))


@pytest.mark.parametrize(
    ("error", "refused", "passing"),
    [
        (ValueError("UNAVAILABLE: connection reset"), False, True),
        (OSError("503, Service Unavailable"), False, True),
        (ValueError("HTTP 403: AccessDenied does not have storage.objects.create"), True, False),
        (ValueError("NOT_FOUND: The specified bucket does not exist"), True, False),
        (TypeError("connection() takes 1 argument"), False, False),
        (ValueError("shapes differ"), False, False),
    ],
)
def test_what_a_bucket_says_and_whether_it_passes(error, refused, passing):
    assert is_refused_write(error) == refused
    assert refused or is_passing(error) == passing

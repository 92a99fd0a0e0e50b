"""Full disks: one clear line, the last checkpoint whole, and the same command goes on."""

import errno
import logging
import os
import stat
import subprocess

import jax
import numpy as np
import pytest

from boneage_jax.errors import InputError
from boneage_jax.report.metric_writer import read_metrics
from boneage_jax.storage.quiet_orbax import without_late_errors
from boneage_jax.storage.safe_write import (
    cannot_write,
    in_one_piece,
    is_passing,
    is_refused_write,
)
from boneage_jax.training.run import load_run


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
    """Takes every byte that is left."""
    with (folder / "ballast").open("ab", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError as error:
                assert error.errno == errno.ENOSPC


# What is written when the disk becomes full, and the file that the line names.
WRITES = {
    "metrics": ("boneage_jax.report.metric_writer.MetricWriter.write", "metrics.jsonl"),
    "checkpoint": ("boneage_jax.storage.checkpoints.Checkpoints.save", "checkpoints"),
    "report": ("boneage_jax.training.final_report.write_report", "predictions.csv"),
}


@pytest.mark.parametrize("what", WRITES)
def test_a_full_disk_costs_nothing_that_was_saved(what, small_disk, tiny_train, monkeypatch, capfd):
    target, names = WRITES[what]
    options = {"folder": small_disk, "model__hidden": 2048}  # 200 kB a checkpoint
    # Up to a checkpoint; the report is written at the end of all.
    if what != "report":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "boneage_jax.runtime.preemption.Stopping.reason_for_all",
                lambda self, step, every: "told" if step == 2 else "",
            )
            with pytest.raises(SystemExit):
                tiny_train(**options)
    with pytest.MonkeyPatch.context() as patch:
        module, _, name = target.rpartition(".")
        owner = pytest.importorskip(module) if "training" in module else _class(module)
        write = getattr(owner, name)

        def full(*args, **kwargs):
            fill(small_disk)
            return write(*args, **kwargs)

        patch.setattr(owner, name, full)
        with pytest.raises(InputError) as error:
            tiny_train(**options)
    line = str(error.value)
    assert "Traceback" not in capfd.readouterr().err
    assert names in line and "free some space" in line and "goes on" in line and "\n" not in line
    workdir = small_disk / "run"
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


def _class(path):
    module, _, name = path.rpartition(".")
    return getattr(pytest.importorskip(module), name)


def test_what_orbax_logs_after_a_failure_is_dropped_for_a_while():
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

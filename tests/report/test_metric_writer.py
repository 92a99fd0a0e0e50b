"""The diary of a run across kills and restarts."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from boneage_jax.errors import InputError
from boneage_jax.report.metric_writer import Event, MetricWriter, SessionLog, read_metrics


def fill(workdir: Path, steps: range, resume_step: int | None = None) -> None:
    with MetricWriter(workdir, resume_step) as writer:
        for step in steps:
            writer.write(step, {"train/loss": 1.0 / step, "flops": step * 10**15})


def events(workdir: Path) -> list[Event]:
    """All TensorBoard records in the order of their files, by the TFRecord format: length, its
    masked CRC, data, its masked CRC."""

    def masked(data: bytes) -> int:
        crc = 0xFFFFFFFF  # CRC-32C (Castagnoli), bit by bit
        for byte in data:
            crc ^= byte
            for _ in range(8):
                crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        crc ^= 0xFFFFFFFF
        return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF

    found = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            assert struct.unpack("<I", data[8:12])[0] == masked(data[:8])
            body = data[12 : 12 + length]
            assert struct.unpack("<I", data[12 + length : 16 + length])[0] == masked(body)
            found.append(Event.FromString(body))
            data = data[16 + length :]
    return found


def test_rows_come_back(tmp_path: Path) -> None:
    fill(tmp_path, range(1, 4))
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[1] == {"step": 2, "train/loss": 0.5, "flops": 2 * 10**15}
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_tensorboard_holds_the_same_numbers(tmp_path: Path) -> None:
    fill(tmp_path, range(1, 4))
    scalars = {
        (event.step, value.tag): value.simple_value
        for event in events(tmp_path)
        for value in event.summary.value
    }
    assert len(scalars) == 6
    assert scalars[3, "train/loss"] == pytest.approx(1 / 3)


def test_each_row_is_on_disk_at_once(tmp_path: Path) -> None:
    writer = MetricWriter(tmp_path, None)
    writer.write(1, {"loss": np.float32(2.5)})
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 2.5}]
    writer.close()
    writer.close()


def test_resuming_forgets_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    fill(tmp_path, range(1, 8))
    with MetricWriter(tmp_path, resume_step=4) as writer:
        assert writer.last_row is not None and writer.last_row["step"] == 4
        assert len(read_metrics(tmp_path)) == 7  # nothing changes before the first write
        writer.write(5, {"train/loss": 9.0})
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert rows[-1] == {"step": 5, "train/loss": 9.0}
    starts = [event for event in events(tmp_path) if event.session_log.status == SessionLog.START]
    assert starts[-1].step == 5  # TensorBoard drops older events from this step on


def test_a_new_run_forgets_all(tmp_path: Path) -> None:
    fill(tmp_path, range(1, 5))
    fill(tmp_path, range(1, 3), resume_step=None)
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]


@pytest.mark.parametrize("cut", range(1, 30, 4))
def test_a_torn_last_line_is_forgotten(tmp_path: Path, cut: int) -> None:
    fill(tmp_path, range(1, 4))
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    kept = 3 if cut == 1 else 2  # without its line feed alone the row is whole
    assert len(read_metrics(tmp_path)) == kept
    fill(tmp_path, range(4, 5), resume_step=3)
    assert [row["step"] for row in read_metrics(tmp_path)] == [*range(1, kept + 1), 4]
    for line in path.read_text().splitlines():
        json.loads(line)


def test_damage_elsewhere_is_reported(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl, line 2"):
        read_metrics(tmp_path)


def test_numbers_that_json_has_not_become_null(tmp_path: Path) -> None:
    with MetricWriter(tmp_path, None) as writer:
        writer.write(1, {"a": float("nan"), "b": float("inf"), "c": 1})
    assert read_metrics(tmp_path) == [{"step": 1, "a": None, "b": None, "c": 1}]


def test_nothing_written_leaves_no_trace(tmp_path: Path) -> None:
    with MetricWriter(tmp_path, None) as writer:
        assert writer.last_row is None
    assert list(tmp_path.iterdir()) == []
    assert read_metrics(tmp_path) == []


def test_pytorch_is_not_loaded(tmp_path: Path) -> None:
    """It costs seconds and memory where it is installed; an import of it afterwards works."""
    (tmp_path / "torch.py").write_text("print('loaded')")
    code = "import boneage_jax.report.metric_writer; print('before'); import torch"
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(__file__).parents[2]}"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["before", "loaded"]

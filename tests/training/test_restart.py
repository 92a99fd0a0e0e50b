"""Runs that go on elsewhere, and runs that are told to end by their cluster."""

import json

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from boneage_jax.errors import InputError, Stopped
from boneage_jax.report.metric_writer import read_metrics
from boneage_jax.training.run import load_run


def test_a_run_goes_on_with_fewer_devices(tiny_train, monkeypatch):
    """Saved on 4 devices, on with 2, then 1; the losses are those of a run that was not moved."""
    ends = {"at": 99}
    monkeypatch.setattr(
        ocp.CheckpointManager, "reached_preemption", lambda self, step: step == ends["at"]
    )
    for devices, end in ((4, 3), (2, 6), (1, 99)):
        ends["at"] = end
        options = {
            "devices": jax.devices()[:devices],
            "parallel": "pmap" if devices == 2 else "jit",
        }
        if end < 99:
            with pytest.raises(Stopped):
                tiny_train("moved", **options)
        else:
            _, moved = tiny_train("moved", **options)
    _, whole = tiny_train("whole", devices=jax.devices())
    losses = [
        [row["train/loss"] for row in read_metrics(workdir) if "train/loss" in row]
        for workdir in (whole, moved)
    ]
    assert len(losses[0]) == 8
    # Another number of devices adds up in another order: float32, over 8 steps.
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        load_run(whole, jax.devices()[:1])[1].params,
        load_run(moved, jax.devices()[:1])[1].params,
    )


def test_a_preemption_notice_saves_and_ends(tiny_train, monkeypatch, tmp_path):
    asked = []

    def reached(self, step):
        asked.append(step)
        return step == 3

    monkeypatch.setattr(ocp.CheckpointManager, "reached_preemption", reached)
    with pytest.raises(Stopped) as stopped:
        tiny_train()
    assert stopped.value.code == 75 and sorted({*asked}) == [1, 2, 3]
    assert "preemption notice: saved at step 3 of 8" in stopped.value.message
    assert (tmp_path / "run" / "checkpoints" / "3").exists()


def test_a_report_that_is_made_again_holds_the_same_predictions(tiny_train):
    """A run reports its last evaluation; a start that finds it trained evaluates once more."""
    report, workdir = tiny_train()
    before = (workdir / "predictions.csv").read_bytes()
    (workdir / "report.json").unlink()
    (workdir / "predictions.csv").unlink()
    again, _ = tiny_train()
    assert (workdir / "predictions.csv").read_bytes() == before
    assert again["age"] == report["age"] and again["sex"] == report["sex"]


def test_a_checkpoint_of_another_network_is_one_clear_line(tiny_train, monkeypatch, tmp_path):
    _, workdir = tiny_train()
    # By the key that differs it would have been refused.
    config = json.loads((workdir / "config.json").read_text())
    config["model"]["hidden"] = 16
    (workdir / "config.json").write_text(json.dumps(config))
    (workdir / "report.json").unlink()
    with pytest.raises(InputError, match="written by another model or version") as error:
        tiny_train(model__hidden=16)
    assert "\n" not in str(error.value) and (workdir / "checkpoints" / "8").exists()

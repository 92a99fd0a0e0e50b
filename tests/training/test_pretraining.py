"""Pre-training in one command, and beginning from another run."""

import json
import shutil

import pytest

from boneage_jax import main
from tests.support.unet_run import call


def test_pretraining_runs_first_and_once(phantoms, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("TFDS_DATA_DIR", phantoms)
    recipe = (
        "--config=configs/seg.py",
        "--config.model.name=tiny_unet",
        "--config.data.config=64-small",
        "--config.batch_size=12",
        "--config.eval_batch_size=32",
        "--config.evaluate_every=10.0",
        "--config.steps=2",
        "--config.pretrain.data=hand_phantom/64-small",
        "--config.pretrain.steps=3",
        f"--workdir={tmp_path / 'run'}",
    )
    assert call(main, *recipe) == 0
    first, run = (
        json.loads((folder / "report.json").read_text())
        for folder in (tmp_path / "run" / "pretrain", tmp_path / "run")
    )
    assert first["curve"][-1]["step"] == 3 and run["curve"][-1]["step"] == 2
    assert run["compute"]["train_flops"] * 3 == first["compute"]["train_flops"] * 5
    # Without its own checkpoints the run begins again, but not its pre-training.
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "report.json").unlink()
    before = (tmp_path / "run" / "pretrain" / "report.json").stat().st_mtime_ns
    capfd.readouterr()
    assert call(main, *recipe) == 0
    assert "nothing is left to do" in capfd.readouterr().err
    assert (tmp_path / "run" / "pretrain" / "report.json").stat().st_mtime_ns == before
    again = json.loads((tmp_path / "run" / "report.json").read_text())
    assert again["compute"]["train_flops"] == run["compute"]["train_flops"]
    assert again["mask"] == run["mask"]


def test_pretraining_hands_over_the_network_and_its_cost(here, tmp_path, capfd):
    recipe = (
        "--config=configs/seg.py",
        "--config.data.config=64-small",
        "--config.batch_size=12",
        "--config.eval_batch_size=32",
        "--config.evaluate_every=10.0",
        "--config.augment.invert=0.4",
        "--config.steps=1",
        "--config.optimizer.learning_rate=1e-9",
        "--config.optimizer.weight_decay=0.0",
    )
    assert (
        call(
            main,
            *recipe,
            f"--config.init_from={here / 'unet'}",
            f"--workdir={tmp_path / 'on'}",
        )
        == 0
    )
    before = json.loads((here / "unet" / "report.json").read_text())
    after = json.loads((tmp_path / "on" / "report.json").read_text())
    # At a learning rate of nothing only the statistics move, by one batch.
    assert after["mask"]["pooled"]["f1"] == pytest.approx(before["mask"]["pooled"]["f1"], abs=0.03)
    spent = before["compute"]["train_flops"]
    assert after["compute"]["train_flops"] == pytest.approx(spent * 161 / 160, rel=1e-6)
    assert after["curve"][-1]["flops"] == after["compute"]["train_flops"]
    for wrong, message in (
        (("--config.init_from=nowhere",), "holds no run"),
        (
            (
                f"--config.init_from={here / 'unet'}",
                "--config.model.bn_momentum=0.5",
                "--config.model.name=unet_wide",
            ),
            "holds another network",
        ),
        (("--config.pretrain.steps=5",), "go together"),
    ):
        assert call(main, *recipe, *wrong, f"--workdir={tmp_path / 'x'}") != 0
        text = capfd.readouterr().err
        assert message in text and "Traceback" not in text

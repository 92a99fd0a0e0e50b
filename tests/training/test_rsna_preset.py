"""The recipe `rsna` from a file of timm's, by the command a user types; shrunk to two steps."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from boneage_jax.inference.load_trained import load_trained
from tests.support.compiling import xla_flags
from tfds_rsna.hand_phantom.render import make_phantom

ROOT = Path(__file__).parents[2]


@pytest.fixture
def kaggle(tmp_path):
    """A Kaggle tree of phantoms."""
    name = "boneage-training-dataset"
    folder = tmp_path / "raw" / name / name
    folder.mkdir(parents=True)
    with (tmp_path / "raw" / f"{name}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "boneage", "male"])
        for index in range(20):
            phantom = make_phantom(index, 96, "train")
            cv2.imwrite(str(folder / f"{1377 + index}.png"), phantom.image)
            writer.writerow([1377 + index, round(phantom.bone_age), bool(phantom.male)])
    return tmp_path / "raw"


def test_the_rsna_recipe_starts_from_a_file_of_timm(kaggle, tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed (extra 'peers')")
    timm = pytest.importorskip("timm", reason="timm is not installed (extra 'peers')")
    torch.manual_seed(0)
    whole = timm.create_model("tf_efficientnet_lite0", num_classes=10).state_dict()
    # The first block of each stage: compiles in half of the time.
    network = {k: v for k, v in whole.items() if k[:6] != "blocks" or k.split(".")[2] == "0"}
    file = tmp_path / "tf_efficientnet_lite0.in1k.pth"
    torch.save(network, file)
    workdir = tmp_path / "run"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "boneage_jax.main", "--config=configs/cls.py:rsna"),
            *(f"--workdir={workdir}", f"--config.data.raw_dir={kaggle}"),
            *(f"--config.model.pretrained={file}", "--config.data.config=128"),
            *("--config.data.height=128", "--config.data.width=101"),
            *("--extensions=tests/support/tiny_backbone.py", "--config.model.name=tiny_lite0"),
            *("--config.batch_size=4", "--config.eval_batch_size=4", "--config.steps=2"),
            *("--config.evaluate_every=1000", "--config.optimizer.learning_rate=1e-9"),
        ],
        cwd=ROOT,
        env=os.environ
        | {
            "TFDS_DATA_DIR": str(tmp_path / "data"),
            "PYTHONPATH": str(ROOT),
            "XLA_FLAGS": xla_flags(),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((workdir / "report.json").read_text())
    assert np.isfinite(report["age"]["mae"]) and report["config"]["model"]["dtype"] == "bfloat16"
    # At a learning rate of nothing the run ends with the weights of the file.
    params = load_trained(workdir).variables["params"]["backbone"]
    theirs = network["blocks.5.0.conv_pw.weight"].numpy().transpose(2, 3, 1, 0)
    np.testing.assert_allclose(params["block6a_expand_conv"]["kernel"], theirs, atol=1e-6)
    # The stem reads one channel as the colour stem reads grey.
    stem = network["conv_stem.weight"].numpy().sum(1, keepdims=True).transpose(2, 3, 1, 0)
    assert params["stem_conv"]["kernel"].shape == stem.shape


def test_without_file_and_hub_the_remedy_is_named(kaggle, tmp_path):
    """huggingface_hub missing or no network: one line, before anything is trained."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "boneage_jax.main", "--config=configs/cls.py:rsna"),
            *(f"--workdir={tmp_path / 'run'}", f"--config.data.raw_dir={kaggle}"),
            *("--config.data.config=128", "--config.batch_size=4", "--config.steps=2"),
            *("--config.data.height=128", "--config.data.width=101"),
            *("--config.eval_batch_size=4",),
        ],
        cwd=ROOT,
        env=os.environ
        | {
            "TFDS_DATA_DIR": str(tmp_path / "data"),
            "PYTHONPATH": str(ROOT),
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(tmp_path / "hub"),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("error:") and "hf:timm/tf_efficientnet_b4.ns_jft_in1k" in line
    assert "Traceback" not in done.stderr

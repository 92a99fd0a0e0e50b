"""Plans of runs on machines that are not here."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest

from boneage_jax import plan
from boneage_jax.config import base_config, check_config
from boneage_jax.data.info import DataInfo
from boneage_jax.errors import InputError
from boneage_jax.planning import topology
from boneage_jax.planning.bounds import bounds, cost
from boneage_jax.planning.chips import CHIPS, parse_machine
from boneage_jax.planning.compile_step import all_reduce_on_paper, lower_train_step
from boneage_jax.planning.plan_run import config_for, plan_run
from boneage_jax.planning.plan_text import plan_lines
from boneage_jax.planning.published_data import info_for_planning, published_info
from boneage_jax.training.run import build_run
from tfds_rsna.builders import prepare

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPU compiler, is not installed"
)


def small_config(**options):
    config = base_config()
    config.model.name = "efficientnet_lite0"
    config.data.config = "64"
    config.steps = 20
    for name in ("rotate", "zoom", "translate"):
        config.augment[name] = 0.1
    config.ema_decay = 0.9
    config.batch_size = config.eval_batch_size = 32
    for key, value in options.items():
        config[key] = value
    return check_config(config)


@pytest.mark.parametrize(
    ("text", "platform", "count", "chip"),
    [
        ("v5e:2x4", "tpu", 8, "v5e"),
        ("v4:2x2x2", "tpu", 8, "v4"),
        ("v5e:16x16", "tpu", 256, "v5e"),
        ("gpu:8", "cuda", 8, "h100"),
        ("cuda:2", "cuda", 2, "h100"),
        ("A100:16", "cuda", 16, "a100"),
    ],
)
def test_topologies(text, platform, count, chip):
    machine = parse_machine(text)
    assert (machine.platform, machine.count, machine.chip) == (platform, count, CHIPS[chip])


@pytest.mark.parametrize(
    "text",
    ["", "v5e", "v5e:", "v5e:8", "v5e:0x4", "gpu:0", "gpu:2x4", "v5e:2x4x", "8", "v5e:1000x1000"],
)
def test_texts_that_are_no_topology(text):
    with pytest.raises(InputError, match="--topology="):
        parse_machine(text)


def test_missing_libtpu_is_one_line(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"libtpu: pip install 'boneage_jax\[plan\]'"):
        plan_run(small_config(), "v5e:2x4")


@needs_libtpu
@pytest.mark.parametrize("text", ["v9:2x4", "v5e:3x5"])
def test_topologies_that_libtpu_does_not_know(text):
    with pytest.raises(InputError, match="libtpu does not know it"):
        topology.tpu_devices(text)


@pytest.mark.parametrize(("key", "value"), [("batch_size", 30), ("eval_batch_size", 12)])
def test_a_batch_that_does_not_divide(key, value):
    for machine in ("v5e:2x4", "gpu:8"):
        with pytest.raises(InputError, match=f"{key}={value} does not divide over 8 devices"):
            plan_run(small_config(**{key: value}), machine)


def test_what_is_chosen_by_backend_is_chosen_for_the_machine():
    config = small_config()
    assert config_for(config, "tpu").model.depthwise == "fused"
    assert config_for(config, "tpu").augment.resample == "matmul"
    assert config_for(config, "cuda").augment.resample == "gather"  # it rotates
    config = config_for(config, "cuda").unlock()
    config.model.depthwise, config.augment.resample = "shift", "matmul"
    assert config_for(check_config(config), "tpu").model.depthwise == "shift"
    assert config_for(check_config(config), "cuda").augment.resample == "matmul"


def test_bounds_and_cost_by_hand():
    """8 chips x 16 images; 197 TFLOP/s, 819 GB/s and 200 GB/s each; a step of 0.2 s."""
    plan = {
        "machine": {"chips": 8},
        "batch": {"images": 128, "images_per_chip": 16},
        "flops_per_step": 8 * 19.7e12,  # 0.1 s a chip
        "bytes_accessed_per_chip": 163.8e9,  # 0.2 s
        "main_memory_bytes_per_chip": 122.85e9,  # 0.15 s
        "collectives": [{"wire_bytes_per_chip": 1e9}, {"wire_bytes_per_chip": 1e9}],  # 0.01 s
        "run": {"steps_of_full_size": 18_000.0, "networks": 2},
    }
    plan["bounds"] = bounds(plan, CHIPS["v5e"], "bfloat16")
    assert plan["bounds"] == pytest.approx(
        {"compute": 160.0, "main_memory": 320 / 3, "bandwidth": 80.0, "interconnect": 1600.0}
    )
    found = cost(plan, CHIPS["v5e"], None)
    assert found["hours"] == pytest.approx(2 * 1.0)  # 18,000 steps of 0.2 s, twice
    assert found["dollars"] == pytest.approx(2 * 8 * 1.2)
    assert cost(plan, CHIPS["v5e"], 0.5)["dollars"] == pytest.approx(8.0)
    assert bounds(plan, None, "bfloat16") == {}
    half = bounds(plan, CHIPS["h100"], "float32")["compute"]
    assert half == pytest.approx(bounds(plan, CHIPS["h100"], "bfloat16")["compute"] / 2)


def test_facts_without_data():
    data = base_config().data
    data.name, data.config = "rsna_bone_age", "512-crop"
    info, validation, source = published_info(data)
    assert info == DataInfo(512, 12_611, 127.3208, 41.1820) and validation == 1_425
    assert "RSNA" in source
    data.official_splits, data.test_fraction, data.validation_fraction = False, 0.3, 0.2
    assert published_info(data)[0].train_images == round(0.8 * 0.7 * 12_611)
    data.name, data.config = "hand_phantom", "64-small"
    assert published_info(data)[0].train_images == 96
    data.name = "radiograph_folder"
    with pytest.raises(InputError, match="--train_images=N"):
        published_info(data)
    assert published_info(data, 500)[0].train_images == 500
    data.config = "original"
    with pytest.raises(InputError, match="names no image size"):
        published_info(data, 500)


def test_prepared_data_is_believed_before_what_is_published(tmp_path, capsys):
    folder = tmp_path / "raw" / "boneage-training-dataset"
    folder.mkdir(parents=True)
    rows = ["id,boneage,male"]
    for index in range(10):
        image = np.random.default_rng(index).integers(0, 256, (80, 70), np.uint8)
        assert cv2.imwrite(str(folder / f"{1377 + index}.png"), image)
        rows.append(f"{1377 + index},{20 + 10 * index},{index % 2 == 0}")
    (tmp_path / "raw" / "boneage-training-dataset.csv").write_text("\n".join(rows) + "\n")
    data = base_config().data
    data.name, data.config, data.data_dir = "rsna_bone_age", "128", str(tmp_path / "data")
    data.validation_fraction = 0.0
    assert info_for_planning(data)[0].train_images == 12_611
    prepare("rsna_bone_age/128", tmp_path / "raw", data.data_dir)
    info, validation, source = info_for_planning(data)
    assert (info.train_images, info.age_mean, validation) == (10, 65.0, 0)
    assert source == "the prepared data"


def test_the_real_step_is_lowered_for_cuda():
    config = config_for(small_config(), "cuda")
    run = build_run(config, published_info(config.data)[0], jax.devices()[:1])
    lowered = lower_train_step(run, "cuda").as_text()
    assert "stablehlo.convolution" in lowered  # the native depthwise, not shifted products
    assert "feature_group_count = 96" in lowered
    assert "tf.aliasing_output" in lowered or "jax.buffer_donor" in lowered


@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_a_plan_for_gpus(mode):
    plan = plan_run(small_config(parallel=mode), "gpu:8", price=2.0)
    assert plan["batch"] == {"images": 32, "images_per_chip": 4, "micro_batches": 1}
    # Adam's two moments, the average and the parameters, and the running statistics.
    assert plan["state_bytes_per_chip"] == pytest.approx(16 * plan["parameters"], rel=0.02)
    assert plan["cost"]["price_per_chip_hour"] == 2.0
    assert not {"fits", "memory_per_chip", "collectives"} & plan.keys()
    text = "\n".join(plan_lines(plan))
    assert "no CUDA compiler" in text and "not a measurement" in text
    json.dumps(plan)


@needs_libtpu
def test_a_small_step_compiles_for_tpus():
    """The compiler's all-reduced bytes are those on paper, to the metrics' few scalars."""
    config = small_config()
    with config.unlocked():
        config.model.dtype, config.data.config = "bfloat16", "32"
    plan = plan_run(config, "v5e:2x2", train_images=96)
    assert plan["fits"] and plan["machine"]["chips"] == 4
    memory = plan["memory_per_chip"]
    batch = plan["batch_bytes"] // 4
    assert memory["argument"] == pytest.approx(plan["state_bytes_per_chip"] + batch, rel=0.1)
    assert memory["alias"] == pytest.approx(plan["state_bytes_per_chip"], rel=0.1)
    reduced = [c for c in plan["collectives"] if c["kind"] == "all-reduce"]
    assert 0 <= reduced[0]["payload_bytes"] - plan["all_reduce_on_paper"] < 100
    assert 0.9 < plan["compiler_flops_per_chip"] * 4 / plan["flops_per_step"] < 2
    text = "\n".join(plan_lines(plan))
    assert "compiler's count" in text and "our count" in text and "not a measurement" in text


def test_bytes_to_reduce_on_paper():
    """float32: all gradients, and two sums per channel of the forward pass of BatchNorm."""
    config = config_for(small_config(), "tpu")
    run = build_run(config, published_info(config.data)[0], jax.devices()[:1])
    assert all_reduce_on_paper(run) == 4 * (3_372_994 + 42_016)
    with config.unlocked():
        config.model.dtype = "bfloat16"  # two bytes for kernels, but for those of the heads
    kernels = 3_372_994 - 42_016 - 2 * 1281
    run = build_run(config, run.info, jax.devices()[:1])
    assert all_reduce_on_paper(run) == 4 * (3_372_994 + 42_016) - 2 * kernels
    with config.unlocked():
        config.parallel, config.model.bn_sync = "pmap", False
    run = build_run(config, run.info, jax.devices()[:1])
    assert all_reduce_on_paper(run) == 4 * (3_372_994 + 42_016)


def test_a_run_cuts_by_the_images_of_a_device(monkeypatch):
    """Of a micro-batch; the FLOPs counted do not depend on it."""
    seen = []
    monkeypatch.setattr(
        "boneage_jax.models.efficientnet.strips_for", lambda batch, rows: seen.append(batch) or 1
    )
    config = config_for(small_config(batch_size=32, accumulate=2), "tpu")
    info = published_info(config.data)[0]
    run = build_run(config, info, jax.devices()[:4])
    flops = run.train_flops
    assert set(seen) == {0}
    lower_train_step(run)
    assert set(seen) == {0, 4}
    assert build_run(config, info, jax.devices()[:1]).train_flops == flops


def run_door(*args, **environment):
    return subprocess.run(
        [sys.executable, "-m", "boneage_jax.plan", *args],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | environment,
        timeout=300,
    )


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "--topology=TOPOLOGY is needed"),
        (["--topology=gpu:8"], "--config=RECIPE"),
        (["--topology=gpu:8", "--train_images=x"], "invalid int value"),
        (["--topology=gpu:8", "--price_per_chip_hour=-1"], r"must be in \[0, 1000000\]"),
        (["--topology=gpu:8", "--price_per_chip_hour=nan"], "price_per_chip_hour=nan"),
        (["--topology=gpu:8", "--train_images=1" + "0" * 30], "train_images"),
        (["--topology=gpu:8", "--output=/"], "is a folder"),
        (["--topology=gpu:8", "--output="], "must not be empty"),
        (["--topology=gpu:8", "--output=/nowhere/plan.json"], "there is no folder"),
    ],
)
def test_wrong_flags(args, said):
    with pytest.raises(InputError, match=said):
        plan.main(args)


def test_the_door(tmp_path):
    file = tmp_path / "plan.json"
    small = ["--config=configs/seg.py", "--config.data.config=64", "--config.batch_size=16"]
    done = run_door(*small, "--topology=a100:2", f"--output={file}")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "2 x a100" in done.stdout
    assert json.loads(file.read_text())["batch"]["images_per_chip"] == 8
    done = run_door(*small, "--topology=gpu:3")
    assert done.returncode == 2
    assert done.stderr.startswith("error: batch_size=16 does not divide over 3 devices")
    assert len(done.stderr.splitlines()) == 1

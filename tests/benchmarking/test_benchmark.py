"""The benchmark's door: small real runs keep its contract; no time is judged."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from matplotlib.image import imread

from boneage_jax.benchmarking.comparing import load_benchmark
from boneage_jax.benchmarking.result import COLUMNS, KEY
from boneage_jax.benchmarking.settings import bench_config, check_bench
from boneage_jax.cli import exit_status
from boneage_jax.data.inputs import batch_shapes
from boneage_jax.errors import InputError
from boneage_jax.training.run import build_run, fresh_state
from configs.bench import get_config
from tests.support.compiling import xla_flags

ROOT = Path(__file__).parents[2]
SHORT = (
    "--config.bench.repetitions=2",
    "--config.bench.min_seconds=0",
    "--config.bench.warmup=0",
    "--config.bench.records=8",
    "--config.bench.block=2",
    "--config.bench.image_size=32",
    "--config.batch_size=4",
    "--config.eval_batch_size=4",
    "--extensions=tests/support/tiny_backbone.py",
)


def run_door(*args, devices=1):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": xla_flags(devices)}
    command = [sys.executable, "-m", "boneage_jax.benchmark", *args]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)


def counted(config, facts):
    """FLOPs of the train step of a config, by the counter itself."""
    from boneage_jax.data.inputs import make_inputs
    from boneage_jax.models.flops import count_flops
    from boneage_jax.training.step import make_train_step

    run = build_run(config, facts, jax.devices()[:1])
    step = make_train_step(run.task, run.optimizer, make_inputs(config, mixed=True))
    state = jax.eval_shape(lambda: fresh_state(config, facts, run.task, run.optimizer))
    batch = batch_shapes(config.batch_size, facts.image_size, run.task)
    return count_flops(step, state, run.task.metrics_type.empty(), batch)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A run of some cases of the small preset."""
    folder = tmp_path_factory.mktemp("measured")
    report = folder / "report.json"
    report.write_text(
        json.dumps(
            {
                "age": {"mae": 12.0, "baseline_mae": 33.0},
                "compute": {"train_flops": 40e12},
                "curve": [
                    {"step": 10, "flops": 10e12, "mae": 30.0},
                    {"step": 40, "flops": 40e12, "mae": 12.0},
                ],
                "config": {"model": {"name": "tiny"}},
            }
        )
    )
    done = run_door(
        *("--config=configs/bench.py", "--only=input,train,augment", *SHORT),
        "--config.model.name=tiny",
        *(f"--output={folder}/out", f"--report={report}"),
    )
    assert done.returncode == 0, done.stderr
    return folder / "out", done.stdout


def test_files_hold_what_they_promise(measured):
    folder, _ = measured
    content = load_benchmark(folder / "benchmark.json")
    for key in ("date", "hardware", "versions", "peaks", "quiet", "load_average", "config"):
        assert key in content, key
    assert content["cases"] == ["train", "augment", "input"]
    assert [row["case"] for row in content["results"]] == content["cases"]
    for row in content["results"]:
        assert set(KEY) < row.keys()
        assert row["n"] == len(row["samples"]) >= 2
        assert row["low"] <= row["median"] <= row["high"]
        assert row["images_per_second"] == pytest.approx(4 / row["median"])
    assert content["peaks"]["dtype"] == "float32"
    with (folder / "benchmark.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert tuple(lines[0]) == COLUMNS
    assert [row["case"] for row in lines] == content["cases"]
    height, width = imread(folder / "roofline.png").shape[:2]
    assert height > 500 and width > 1500  # with the panel of the report


def test_flops_of_the_step_are_those_of_the_counter(measured):
    folder, _ = measured
    row = load_benchmark(folder / "benchmark.json")["results"][0]
    config = bench_config()
    config.model.name = "tiny"
    config.batch_size = config.eval_batch_size = 4
    config.bench.image_size = 32
    recipe, _, facts = check_bench(config)
    assert row["flops"] == counted(recipe, facts)
    assert row["flops_per_second"] == pytest.approx(row["flops"] / row["median"])
    assert row["bytes_accessed"] > 0


def test_the_screen_shows_a_line_per_result_and_the_report(measured):
    _, screen = measured
    for words in ("peaks of a device", "images/s", "MAE 12.00 months after 40.0 TFLOP"):
        assert words in screen
    assert "minutes at the rate of the train step" in screen
    assert [text.split()[0] for text in screen.splitlines()[4:7]] == ["train", "augment", "input"]


def test_the_exit_status_tells_of_regressions(measured, monkeypatch, tmp_path, capsys):
    from boneage_jax import benchmark

    old = load_benchmark(measured[0] / "benchmark.json")
    monkeypatch.chdir(ROOT)
    for factor, status in ((100.0, 0), (0.01, 1)):  # of the time that it took before
        before = json.loads(json.dumps(old))
        before["hardware"]["devices"] = jax.device_count()
        for row in before["results"]:
            row |= {key: row[key] * factor for key in ("median", "low", "high")}
        (tmp_path / "before.json").write_text(json.dumps(before))
        args = ("--config=configs/bench.py", "--only=augment", "--config.model.name=tiny", *SHORT)
        more = (f"--compare={tmp_path}/before.json", f"--output={tmp_path}/out")
        assert benchmark.main([*args, *more]) == status
        assert ("slower" in capsys.readouterr().out) == bool(status)


def test_cases_of_processes_and_devices(tmp_path):
    done = run_door(
        *("--config=configs/bench.py:unet", "--only=compile,memory,loop,parallel,devices"),
        *(*SHORT, f"--output={tmp_path}", "--config.model.name=tiny_unet"),
        devices=2,
    )
    assert done.returncode == 0, done.stderr
    rows = load_benchmark(tmp_path / "benchmark.json")["results"]
    by_case = {case: [row for row in rows if row["case"] == case] for case in {*_cases(rows)}}
    assert len(by_case["compile"]) == 2
    for row in by_case["compile"]:
        parts = sum(row["note"][f"{part}_seconds"] for part in ("import", "compile", "step"))
        assert row["median"] == pytest.approx(parts)
        assert row["note"]["cache_files"] > 0
    memory = {row["name"]: row for row in by_case["memory"]}
    assert all(row["unit"] == "bytes" and row["median"] > 1e5 for row in memory.values())
    assert "planned by XLA per device" in memory
    assert [row["name"] for row in by_case["loop"]] == ["bare step", "input and step"]
    assert by_case["loop"][1]["note"]["ratio_to_bare_step"] > 0
    assert [row["parallel"] for row in by_case["parallel"]] == ["jit", "pmap"]
    assert [(row["devices"], row["batch_size"]) for row in by_case["devices"]] == [(1, 2), (2, 4)]
    assert by_case["devices"][0]["note"]["efficiency"] == 1.0


def _cases(rows):
    return [row["case"] for row in rows]


@pytest.mark.parametrize("preset", ["", "b4", "unet", "gpu"])
def test_presets_are_valid(preset):
    recipe, settings, facts = check_bench(get_config(preset))
    assert settings.image_size == facts.image_size
    assert build_run(recipe, facts, jax.devices()[:1]).total_steps > 10_000


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), "--config=RECIPE[:PRESET]"),
        (("--config=configs/bench.py", "--only=trian"), "no such case"),
        (("--config=configs/bench.py:b5",), "no preset 'b5'"),
        (("--config=configs/bench.py", "--config.bench.repetition=3"), "repetition"),
        (
            ("--config=configs/bench.py", "--config.bench.repetitions=0"),
            "repetitions=0 must be in [1, ",
        ),
        (("--config=configs/bench.py", "--config.bench.image_size=3"), "image_size=3"),
        (("--config=configs/bench.py", "--config.bench.min_seconds=nan"), "min_seconds=nan"),
        (("--config=configs/bench.py", "--config.bench.image_sizes=64,3"), "image_sizes: 3"),
        (("--config=configs/bench.py", "--config.bench.batch_sizes=²"), "whole numbers"),
        (("--config=configs/bench.py", "--config.bench.batch_sizes=99999999"), "batch_sizes: 9"),
        (("--config=configs/bench.py", "--config.bench.batch_sizes=4,x"), "whole numbers"),
        (("--config=configs/bench.py", "--config.model.name=b9"), "b9"),
        (("--config=configs/cls.py",), "no section bench"),
        (("--config=configs/bench.py", "--compare=none.json"), "no such file"),
        (("--config=configs/bench.py", "--report=none.json"), "no such file"),
        (("--config=configs/bench.py", "--output=/proc/none"), "cannot be written"),
        (("--config=configs/bench.py", "stray"), "unexpected argument"),
        (("--config=configs/bench.py", "--output"), "expected one argument"),
    ],
)
def test_bad_input_is_one_line(monkeypatch, capsys, tmp_path, args, words):
    from boneage_jax import benchmark

    monkeypatch.chdir(tmp_path)
    args = [a.replace("configs/", f"{ROOT}/configs/") for a in args]
    assert exit_status(benchmark.main, args) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and words in lines[0]


def test_another_type_or_a_key_left_out_is_refused():
    config = bench_config()
    del config.bench
    with pytest.raises(InputError, match="no section bench"):
        check_bench(config)
    config = bench_config()
    config.bench.unknown = 3
    with pytest.raises(InputError, match=r"bench\.unknown"):
        check_bench(config)

"""Whole runs by the commands a user types, on a few phantoms at 64 px."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest

import boneage_jax
import tests.support.tiny_backbone  # noqa: F401  (registers the network)
from boneage_jax import evaluate, main, predict
from boneage_jax.cli import exit_status
from boneage_jax.config import base_config
from boneage_jax.evaluation.stresses import STRESSES
from boneage_jax.inference.calibration import Calibration
from boneage_jax.report.metric_writer import read_metrics
from boneage_jax.training.run import load_run
from tests.support.compiling import xla_flags
from tfds_rsna.hand_phantom.render import make_phantom

ROOT = Path(__file__).parents[2]
STEPS = 8
RECIPE = [
    "--config=configs/cls.py",
    "--config.data.config=64-small",
    "--extensions=tests/support/tiny_backbone.py",
    "--config.model.name=tiny",
    "--config.batch_size=8",
    "--config.eval_batch_size=16",
    f"--config.steps={STEPS}",
    "--config.evaluate_every=0.34",
    "--config.checkpoint_every=2",
    "--config.log_every=1",
    "--config.ema_decay=0.9",
    "--config.augment.rotate=10.0",
    "--config.model.sex_input=True",
]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """One device, and prepared data shared by the runs of this file."""
    folder = tmp_path_factory.mktemp("shared")
    keep = os.environ | {"XLA_FLAGS": xla_flags()}
    return keep | {
        "TFDS_DATA_DIR": str(folder / "data"),
        "PYTHONPATH": str(ROOT),
    }


def command(workdir: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "boneage_jax.main", *RECIPE, f"--workdir={workdir}", *more]


@pytest.fixture(scope="module")
def finished(environment, tmp_path_factory):
    """The workdir of a run that was never stopped, and what it printed."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    done = subprocess.run(
        command(workdir), cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return workdir, done


@pytest.fixture
def here(environment, monkeypatch):
    """The same environment for doors that are called in this process."""
    monkeypatch.setenv("TFDS_DATA_DIR", environment["TFDS_DATA_DIR"])
    monkeypatch.chdir(ROOT)


def test_a_run_leaves_all_that_the_contract_names(finished):
    workdir, done = finished
    for name in ("config.json", "metrics.jsonl", "checkpoints", "tensorboard", "figures"):
        assert (workdir / name).exists(), name
    report = json.loads((workdir / "report.json").read_text())
    assert report["dataset"]["splits"] == {"train": 96, "validation": 32, "test": 32}
    assert {"mae", "mae_low", "mae_high", "baseline_mae", "by_sex", "by_age"} <= set(report["age"])
    assert {"accuracy", "auc", "confusion_matrix"} <= set(report["sex"])
    assert [point["step"] for point in report["curve"]] == [4, 8]
    run, _, _ = load_run(workdir, jax.devices()[:1])
    assert report["compute"]["train_flops"] == STEPS * run.train_flops
    assert report["compute"]["flops_per_prediction"] == run.network.eval_flops // 16
    # The one convolution needs no gradient by the image: twice the forward pass and a bit.
    assert 2 < run.train_flops / 8 / report["compute"]["flops_per_prediction"] < 3
    assert report["compute"]["train_flops"] == report["curve"][-1]["flops"]
    page = (workdir / "report.html").read_text()
    assert page.startswith("<!doctype html>") or page.startswith("<!DOCTYPE html>")
    assert "MAE" in done.stdout and "report.html" in done.stdout


def test_validation_metrics_are_those_of_the_written_predictions(finished):
    """The metric accumulated on the device against the CSV."""
    workdir, _ = finished
    with (workdir / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 32
    error = [abs(float(r["predicted_age"]) - float(r["true_age"])) for r in rows]
    last = [r for r in read_metrics(workdir) if "validation/mae" in r][-1]
    assert last["validation/mae"] == pytest.approx(np.mean(error), rel=1e-3)
    report = json.loads((workdir / "report.json").read_text())
    assert report["age"]["mae"] == pytest.approx(np.mean(error), rel=1e-3)


@pytest.mark.parametrize("kills", [[2], [4, 6]])
def test_a_killed_run_ends_with_the_bits_of_one_never_stopped(
    finished, environment, tmp_path, kills
):
    workdir = tmp_path / "killed"
    for step in kills:
        with (tmp_path / "log").open("w") as log:
            process = subprocess.Popen(
                command(workdir), cwd=ROOT, env=environment, stdout=log, stderr=log
            )
            # As soon as a checkpoint appears, finished or not: some kills hit the saving itself.
            deadline = time.monotonic() + 240
            while time.monotonic() < deadline and process.poll() is None:
                names = [p.name for p in (workdir / "checkpoints").glob("*")]
                if any(int(n.split(".")[0]) >= step for n in names if n.split(".")[0].isdigit()):
                    break
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert not (workdir / "report.json").exists(), (tmp_path / "log").read_text()[-2000:]
    done = subprocess.run(
        command(workdir), cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (_, whole, _), (_, resumed, step) = load_run(finished[0]), load_run(workdir)
    assert step == STEPS
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)
    assert _learned(finished[0]) == _learned(workdir)
    reports = [json.loads((w / "report.json").read_text()) for w in (finished[0], workdir)]
    assert reports[0]["age"] == reports[1]["age"] and reports[0]["sex"] == reports[1]["sex"]


def test_a_run_asked_to_end_saves_and_goes_on_to_the_same_bits(finished, environment, tmp_path):
    workdir, log = tmp_path / "stopped", tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            command(workdir), cwd=ROOT, env=environment, stdout=file, stderr=file
        )
        deadline = time.monotonic() + 240
        while "compiling" not in log.read_text() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(240) == 75, log.read_text()[-2000:]
    assert "SIGTERM: saved at step 1 of 8; the same command goes on" in log.read_text()
    for more, status, says in (
        (["--config.max_seconds=0.01"], 75, "max_seconds=0.01 are over: saved at step 2 of 8"),
        ([], 0, "going on from the checkpoint of step 2"),
    ):
        done = subprocess.run(
            command(workdir, *more), cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert done.returncode == status and says in done.stderr, done.stderr[-3000:]
        assert "Traceback" not in done.stderr
    (_, whole, _), (_, resumed, _) = load_run(finished[0]), load_run(workdir)
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)
    assert _learned(finished[0]) == _learned(workdir)


def _learned(workdir: Path) -> list[dict]:
    """metrics.jsonl without what depends on the clock."""
    clock = {"seconds", "images_per_second"}
    return [{k: v for k, v in r.items() if k not in clock} for r in read_metrics(workdir)]


def test_a_finished_run_is_not_run_again(finished, environment):
    workdir, _ = finished
    before = (workdir / "report.json").stat().st_mtime_ns
    done = subprocess.run(
        command(workdir), cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "nothing is left to do" in done.stderr
    assert (workdir / "report.json").stat().st_mtime_ns == before


def test_another_config_or_task_does_not_touch_a_workdir(finished, here, capsys):
    workdir, _ = finished
    argv = [*RECIPE, f"--workdir={workdir}", "--config.seed=7"]
    assert exit_status(main.main, argv) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error:") and "seed: 0 -> 7" in error


def test_the_test_split_is_locked_and_each_opening_is_recorded(finished, here, capsys):
    workdir, _ = finished

    def evaluated(*more):
        return exit_status(evaluate.main, [f"--workdir={workdir}", *more])

    assert evaluated("--split=test") == 2
    assert "--unlock_test" in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (workdir / "evaluation" / "test").exists()
    assert evaluated("--split=train") == 0  # which is open, and is no opening
    report = json.loads((workdir / "evaluation" / "train" / "report.json").read_text())
    assert not report["dataset"]["test_unlocked"]
    for times in (1, 2):
        assert evaluated("--split=test", "--unlock_test") == 0
        report = json.loads((workdir / "evaluation" / "test" / "report.json").read_text())
        assert report["dataset"]["split"] == "test" and report["dataset"]["test_unlocked"]
        assert report["dataset"]["test_openings"] == times
        assert sum(band["n"] for band in report["age"]["by_age"]) == 32
    noted = json.loads((workdir / "test_unlocked.json").read_text())
    assert len(noted) == 2 and noted[1]["mae"] == pytest.approx(report["age"]["mae"], abs=1e-3)
    # From now on every report says that the test split was seen.
    assert evaluated("--split=validation") == 0
    report = json.loads((workdir / "evaluation" / "validation" / "report.json").read_text())
    assert report["dataset"]["test_unlocked"] and report["dataset"]["test_openings"] == 2


def test_an_evaluation_under_stress_reads_what_is_stored(finished, here, tmp_path, capsys):
    workdir, _ = finished
    out = tmp_path / "stressed"
    assert (
        exit_status(evaluate.main, [f"--workdir={workdir}", "--stress=6", f"--output={out}"]) == 0
    )
    found = json.loads((out / "report.json").read_text())["stress"]
    rows = {row["what"]: row for row in found["rows"]}
    assert found["images"] == 6 and list(rows) == list(STRESSES)
    with (out / "predictions.csv").open() as file:
        errors = [
            abs(float(row["predicted_age"]) - float(row["true_age"]))
            for row in csv.DictReader(file)
        ]
    chosen = np.linspace(0, len(errors) - 1, 6).astype(int)
    assert rows["untouched"]["mae"] == pytest.approx(np.mean([errors[i] for i in chosen]), abs=1e-2)
    assert rows["untouched"]["change"] == 0 and rows["inverted"]["mae"] != rows["untouched"]["mae"]
    assert "Under stress" in (out / "report.html").read_text()
    capsys.readouterr()
    for number in ("-1", "0"):
        assert exit_status(evaluate.main, [f"--workdir={workdir}", f"--stress={number}"]) == 2
        assert f"--stress={number} must be at least 1" in capsys.readouterr().err
    before = (workdir / "report.json").read_bytes()
    assert exit_status(evaluate.main, [f"--workdir={workdir}", f"--output={workdir}"]) == 2
    assert "whose own report this would replace" in capsys.readouterr().err
    assert (workdir / "report.json").read_bytes() == before


def test_evaluate_names_the_splits_there_are(finished, here, capsys):
    workdir, _ = finished
    assert exit_status(evaluate.main, [f"--workdir={workdir}", "--split=tset"]) == 2
    assert "validation" in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.fixture
def radiographs(tmp_path):
    """Five readable files of any size, and three that are not radiographs."""
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(5):
        phantom = make_phantom(index, 96, "test").image
        cv2.imwrite(str(folder / f"{index}.png"), phantom[:, : 96 - 5 * index])
    (folder / "text.png").write_text("no image")
    whole = (folder / "0.png").read_bytes()
    (folder / "torn.png").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    return folder


def test_predict_reads_what_can_be_read(finished, here, radiographs, tmp_path, capsys):
    workdir, _ = finished
    sexes = tmp_path / "sex.csv"
    sexes.write_text("id,male\n0,True\n1,False\n2,\n")
    output = tmp_path / "out.csv"
    argv = [f"--workdir={workdir}", f"--output={output}", f"--sex_csv={sexes}", str(radiographs)]
    assert exit_status(predict.main, argv) == 0
    assert "5 of 8 files read" in capsys.readouterr().out
    with output.open() as file:
        rows = {Path(row["file"]).name: row for row in csv.DictReader(file)}
    assert (
        tuple(next(iter(rows.values())))
        == (
            *(
                "file",
                "bone_age_months",
                "low_months",
                "high_months",
                "p_male",
                "accepted",
                "error",
                "note",
            ),
        )
        and len(rows) == 8
    )
    for name in ("text.png", "torn.png", "empty.jpg"):
        assert rows[name]["error"] and not rows[name]["bone_age_months"]
        assert rows[name]["accepted"] == "False"
    for index in range(5):
        row = rows[f"{index}.png"]
        low, age, high = (float(row[k]) for k in ("low_months", "bone_age_months", "high_months"))
        assert low <= age <= high and 0 <= float(row["p_male"]) <= 1 and not row["error"]


def test_the_library_predicts_what_the_door_predicts(finished, radiographs):
    workdir, _ = finished
    predictor = boneage_jax.load_predictor(workdir)
    images = [make_phantom(index, 96, "test").image for index in range(3)]
    male = predictor(images, male=[1, 1, 1])["bone_age_months"]
    female = predictor(images, male=[0, 0, 0])["bone_age_months"]
    unknown = predictor(images)
    assert np.abs(male - female).max() > 1e-4, "the sex is an input of this network"
    # An image's reading depends neither on its companions nor on its place in the batch.
    alone = predictor([images[2]])
    np.testing.assert_allclose(
        alone["bone_age_months"][0], unknown["bone_age_months"][2], rtol=1e-4
    )
    assert predictor([])["bone_age_months"].shape == (0,)
    with pytest.raises(boneage_jax.InputError, match="uint8"):
        predictor([images[0].astype(np.float32)])
    with pytest.raises(boneage_jax.InputError, match="male"):
        predictor(images, male=[1])
    blank = predictor([np.full((64, 64), 9, np.uint8)])
    assert not blank["accepted"][0]


def test_a_run_keeps_the_ages_of_its_training(finished):
    """With 32 images in the validation split, and statistics of more than those."""
    found = Calibration.load(finished[0] / "calibration.npz")
    train = [make_phantom(index, 64, "train").bone_age for index in range(96)]
    assert (found.youngest, found.oldest) == pytest.approx((min(train), max(train)), rel=1e-5)
    assert found.judges_images and found.images == 32


def test_a_damaged_or_missing_checkpoint_is_one_clear_line(finished, environment, tmp_path):
    workdir = tmp_path / "damaged"
    shutil.copytree(finished[0], workdir)
    for file in (workdir / "checkpoints").glob("*/state/d/*"):
        file.write_bytes(b"\x00" * 100)
    command = [sys.executable, "-m", "boneage_jax.evaluate", f"--workdir={workdir}"]
    command.append("--extensions=tests/support/tiny_backbone.py")
    for word in ("cannot be restored", "no checkpoints"):
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        assert word in done.stderr.strip().splitlines()[-1]
        shutil.rmtree(workdir / "checkpoints", ignore_errors=True)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "--config"),
        (["--config=configs/none.py"], "none.py"),
        (["--config=configs/cls.py:mnist"], "mnist"),
        (["--config=configs/cls.py", "--config.batchsize=4"], "batchsize"),
        (["--config=configs/cls.py", "--config.batch_size=many"], "batch_size"),
        (["--config=configs/cls.py", "--config.model.name=resnet50"], "resnet50"),
        (["--config=configs/cls.py", "--config.data.name=chest"], "chest"),
        (["--config=configs/cls.py", "--config.data.config=97"], "97"),
        (["--config=configs/cls.py:rsna", "--config.data.raw_dir=/no/such"], "/no/such"),
        (["--config=configs/cls.py:rsna"], "tfds_rsna.prepare"),
        (["--config=configs/cls.py", "--workdir=/proc/none"], "/proc/none"),
        (["--config=configs/cls.py", "--workdir=ftp://host/run"], "ftp://host/run"),
        (["--config=configs/cls.py", "stray"], "stray"),
        (["--config=configs/cls.py", "--config.augment.rotate=-3.0"], "rotate"),
    ],
)
def test_wrong_command_lines_are_one_clear_line(arguments, word, here, tmp_path, capsys):
    if "--config=configs/cls.py" in arguments and "data.config=97" not in str(arguments):
        arguments = [*arguments, "--config.data.config=64-small"]
    if not any(a.startswith("--workdir") for a in arguments):
        arguments = [*arguments, f"--workdir={tmp_path / 'run'}"]
    assert exit_status(main.main, arguments) == 2
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and word in errors[0], captured.err
    assert "Traceback" not in captured.err and not (tmp_path / "run" / "report.json").exists()


def test_help_tells_how_to_use_each_door(capsys):
    for module in (main, evaluate, predict):
        with pytest.raises(SystemExit) as stop:
            module.main(["--help"])
        assert stop.value.code == 0 and "--workdir" in capsys.readouterr().out


def test_train_as_a_library_on_four_devices(here, tmp_path):
    """pmap and the library call; the loop asserts that nothing was compiled twice."""
    config = base_config()
    config.data.config = "64-small"
    config.model.name = "tiny"
    config.parallel = "pmap"
    config.steps, config.batch_size, config.eval_batch_size = 2, 8, 16
    summary = boneage_jax.train(config, tmp_path / "run")
    assert summary["compute"]["hardware"]["devices"] == 4
    assert summary["age"]["mae"] > 0

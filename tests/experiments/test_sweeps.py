"""Sweeps: what is run, what is kept, what the tables say; runs are stand-ins but for one sweep."""

import csv
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from boneage_jax import sweep
from boneage_jax.cli import exit_status
from boneage_jax.config import base_config, check_config, save_config
from boneage_jax.errors import InputError
from boneage_jax.experiments import sweeps
from boneage_jax.experiments.sweep_tables import _interval, best_recipes, summarize
from boneage_jax.experiments.sweeps import Point, load_arms, make_points

ROOT = Path(__file__).parents[2]
SWEEPS = sorted((ROOT / "configs" / "sweeps").glob("[a-z]*.py"))


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_sweeps_of_the_project_fit_the_recipe(path):
    from configs.cls import get_config

    arms = load_arms(path)
    recipe = get_config("subset")
    recipe.member_flops = 0.0
    points = make_points(recipe, arms, [6e12], [0])
    assert len(points) == len(arms) and (len(arms) > 5 or path.stem == "budgets")
    base = points[0][1].to_dict()
    for point, config in points[1:]:
        assert config.to_dict() != base, f"{point.arm} changes nothing"


def arms_file(tmp_path, text):
    path = tmp_path / "arms.py"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def get_arms():\n    return {}", "must return a dict"),
        ("def get_arms():\n    return {'a/b': {}}", "arm 'a/b' needs a name"),
        ("def get_arms():\n    return {'a': 3}", "arm 'a' needs a name"),
        ("def get_arms():\n    return {'a': {5: 3}}", "arm 'a' needs .* a dict of config keys"),
        ("def get_arms():\n    return {'a' * 101: {}}", "needs a name of up to 100 letters"),
        ("x = 1 / 0", "ZeroDivisionError"),
        ("y = 2", "get_arms"),
    ],
)
def test_a_wrong_file_of_arms_is_named(tmp_path, text, words):
    with pytest.raises(InputError, match=words):
        load_arms(arms_file(tmp_path, text))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"loss.agee": "l1"}, r"arm odd: unknown config key 'loss\.agee'"),
        ({"lost.age": "l1"}, r"unknown config key 'lost\.age'"),
        ({"loss.age": "l3"}, r"arm odd: config\.loss\.age='l3'"),
        ({"batch_size": "many"}, r"arm odd: config\.batch_size='many' must be int"),
    ],
)
def test_a_wrong_arm_is_refused_before_anything_runs(overrides, words):
    with pytest.raises(InputError, match=words):
        make_points(base_config(), {"base": {}, "odd": overrides}, [0], [0])


def finish(folder, point, recipe, errors, seed):
    """What a finished run leaves, with the given absolute errors."""
    folder.mkdir(parents=True, exist_ok=True)
    [(_, config)] = make_points(recipe, {point.arm: dict(point.overrides)}, [point.budget], [seed])
    save_config(folder / "config.json", config)
    with (folder / "predictions.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "true_age", "predicted_age"])
        writer.writerows([i, 100.0, 100.0 + e] for i, e in enumerate(errors))
    age = {"mae": float(np.mean(errors)), "baseline_mae": 40.0, "bias": 1.0, "rmse": 9.0}
    report = {
        "dataset": {},
        "config": {},
        "age": age | {"mae_low": 1.0, "mae_high": 99.0, "within_12": 0.5},
        "compute": {
            "train_flops": int(point.budget),
            "seconds": 3.5,
            "hardware": {},
            "versions": {},
        },
        "curve": [{"step": 12, "flops": 1, "mae": 3.0}],
    }
    (folder / "report.json").write_text(json.dumps(report))


def recipe_of():
    recipe = base_config()
    recipe.budget_flops = 1e9
    return recipe


def fake_runs(monkeypatch, recipe, fails=()):
    """Replaces the subprocess of a point; returns the names of the points that were run."""
    ran = []

    def run(command, *, stdout, **_):
        folder = Path(command[-1].removeprefix("--workdir="))
        arm, budget, seed = folder.name.rsplit("-", 2)
        point = Point(arm, OVERRIDES[arm], float(budget), int(seed))
        ran.append(point.name)
        if point.arm in fails:
            stdout.write("error: it did not learn\n")
            return subprocess.CompletedProcess(command, 1)
        rng = np.random.default_rng(point.seed)
        slower = {"base": 10.0, "better": 8.0}.get(point.arm, 12.0) * (2e12 / point.budget) ** 0.2
        finish(folder, point, recipe, slower + rng.normal(0, 1, 30) + 0.3 * point.seed, point.seed)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    return ran


OVERRIDES = {"base": (), "better": (("loss.age", "mse"),), "bad": (("seed", 0),)}
ARMS = "def get_arms():\n    return {'base': {}, 'better': {'loss.age': 'mse'}, 'bad': {'seed': 0}}"


def run_door(tmp_path, *more):
    config = tmp_path / "recipe.py"
    config.write_text(
        "from boneage_jax.config import base_config\n"
        "def get_config():\n"
        "    config = base_config()\n"
        "    config.budget_flops = 1e9\n"
        "    return config\n"
    )
    arms = tmp_path / "arms.py"
    if not arms.exists():
        arms.write_text(ARMS)
    given = [f"--config={config}", f"--arms={arms}", f"--output={tmp_path / 'out'}"]
    return exit_status(sweep.main, [*given, *more])


def table(tmp_path, name):
    with (tmp_path / "out" / name).open() as file:
        return list(csv.DictReader(file))


def test_a_sweep_writes_one_line_per_point_and_survives_a_failure(monkeypatch, tmp_path, capsys):
    ran = fake_runs(monkeypatch, recipe_of(), fails=("bad",))
    assert run_door(tmp_path, "--seeds=3", "--budgets=1e12,2e12") == 1
    assert len(ran) == 18 and len(set(ran)) == 18
    rows = table(tmp_path, "runs.csv")
    assert len(rows) == 18
    bad = [row for row in rows if row["arm"] == "bad"]
    assert all(row["error"] == "error: it did not learn" and not row["mae"] for row in bad)
    summary = {(row["arm"], float(row["budget"])): row for row in table(tmp_path, "summary.csv")}
    assert set(summary) == {(a, b) for a in ("base", "better") for b in (1e12, 2e12)}
    mine = [float(r["mae"]) for r in rows if r["arm"] == "better" and float(r["budget"]) == 2e12]
    found = summary["better", 2e12]
    # Student's t of two degrees of freedom has the quantile (2 p - 1) / sqrt(2 p (1 - p)).
    half = 0.95 / (2 * 0.975 * 0.025) ** 0.5 * np.std(mine, ddof=1) / 3**0.5
    assert float(found["low"]) == pytest.approx(np.mean(mine) - half, abs=1e-3)
    assert float(found["high"]) == pytest.approx(np.mean(mine) + half, abs=1e-3)
    assert float(found["difference"]) == pytest.approx(-2.0, abs=1e-3)
    assert float(found["difference_high"]) < 0 and not summary["base", 2e12]["difference"]
    assert imread(tmp_path / "out" / "mae_vs_flops.png").std() > 0.01
    assert "6 of 18 runs failed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("runs", "quantile"),
    # One degree of freedom: Cauchy's tan. Eleven and thirty: Student's table.
    [(2, np.tan(np.pi * 0.475)), (12, 2.20099), (31, 2.04227)],
)
def test_the_interval_over_seeds_is_students_for_any_number(runs, quantile):
    errors = np.random.default_rng(runs).normal(10, 1, runs)
    half = quantile * errors.std(ddof=1) / runs**0.5
    found = _interval(errors)
    assert found["low"] == pytest.approx(errors.mean() - half, rel=1e-5)
    assert found["high"] == pytest.approx(errors.mean() + half, rel=1e-5)
    assert _interval(np.full(runs, 3.0)) == {"sd": 0.0, "low": 3.0, "high": 3.0}
    assert _interval(errors[:1]) == {}


def test_a_sweep_goes_on_where_it_stopped(monkeypatch, tmp_path):
    recipe = recipe_of()
    ran = fake_runs(monkeypatch, recipe, fails=("better",))
    only = ("--only=base,better", "--seeds=2", "--budgets=1e12")
    assert run_door(tmp_path, *only) == 1
    del ran[:]
    again = fake_runs(monkeypatch, recipe)
    assert run_door(tmp_path, *only) == 0
    assert again == ["better-1e+12-0", "better-1e+12-1"]
    assert not any(row["error"] for row in table(tmp_path, "runs.csv"))
    before = (tmp_path / "out" / "summary.csv").read_text()
    (tmp_path / "out" / "summary.csv").unlink()
    assert run_door(tmp_path, "--redraw") == 0
    assert (tmp_path / "out" / "summary.csv").read_text() == before


def test_a_sweep_of_other_arms_keeps_the_rows_that_are_there(monkeypatch, tmp_path):
    fake_runs(monkeypatch, recipe_of())
    for arm in ("better", "base", "better"):
        args = (f"--only={arm}", "--seeds=2", "--budgets=1e12")
        assert run_door(tmp_path, *args) == 0
    rows = [(row["arm"], row["seed"]) for row in table(tmp_path, "runs.csv")]
    assert rows == [("base", "0"), ("base", "1"), ("better", "0"), ("better", "1")]
    differences = {r["arm"]: r["difference"] for r in table(tmp_path, "summary.csv")}
    assert not differences["base"]  # the first of the file, though it was run last
    assert float(differences["better"]) == pytest.approx(-2 * 2**0.2, abs=1e-3)
    shutil.rmtree(tmp_path / "out" / "runs" / "base-1e+12-1")
    assert run_door(tmp_path, "--only=better", "--seeds=2", "--budgets=1e12") == 0
    assert len(table(tmp_path, "runs.csv")) == 3  # a run that was removed leaves the table


def test_a_finished_run_of_another_config_is_not_taken(monkeypatch, tmp_path, capsys):
    fake_runs(monkeypatch, recipe_of())
    assert run_door(tmp_path, "--only=base", "--seeds=1", "--budgets=1e12") == 0
    args = ("--only=base", "--seeds=1", "--budgets=1e12", "--config.batch_size=8")
    assert run_door(tmp_path, *args) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "batch_size: 32 -> 8" in error


def test_without_the_first_arm_there_is_no_difference(monkeypatch, tmp_path):
    fake_runs(monkeypatch, recipe_of(), fails=("base",))
    assert run_door(tmp_path, "--only=base, better", "--seeds=2", "--budgets=1e12") == 1
    rows = {row["arm"]: row for row in table(tmp_path, "summary.csv")}
    assert rows["better"]["mae"] and not rows["better"]["difference"]


@pytest.mark.parametrize("seeds", ["0", "-2"])
def test_a_sweep_of_nothing_is_refused(tmp_path, seeds, capsys):
    assert run_door(tmp_path, f"--seeds={seeds}") == 2
    assert f"--seeds={seeds} runs nothing" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    ["", "a,b\n1,2\n", "arm,budget,seed,error\nx\n", "arm,budget,seed,mae,error\nx,0,0,few,\n"],
)
def test_a_damaged_table_of_runs_is_named(tmp_path, text, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "runs.csv").write_text(text)
    assert run_door(tmp_path, "--redraw") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "runs.csv" in line


@pytest.mark.parametrize("flag", ["--config.seed=3", "--workdir=x"])
def test_what_a_sweep_sets_itself_is_refused(tmp_path, flag, capsys):
    assert run_door(tmp_path, "--dry_run", flag) == 2
    assert f"error: {flag[:-2]}: a sweep sets it" in capsys.readouterr().err


def test_a_dry_run_prints_commands_and_touches_nothing(monkeypatch, tmp_path, capsys):
    assert run_door(tmp_path, "--dry_run", "--seeds=4,9", "--only=better") == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 2 and not (tmp_path / "out").exists()
    assert "--config.loss.age=mse" in lines[0] and "--config.seed=9" in lines[1]
    assert run_door(tmp_path, "--dry_run", "--seeds=9,", "--only=better") == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 1 and "--config.seed=9" in lines[0]


def test_the_best_recipe_at_each_budget_and_what_it_buys():
    def row(arm, budget, mae):
        return {
            **{"arm": arm, "budget": budget, "mae": mae, "runs": 1},
            **{"train_flops": budget, "baseline_mae": 40.0},
        }

    text = best_recipes(
        [row("a", 1e13, 12.0), row("b", 1e13, 11.0), row("a", 3e13, 9.0), row("b", 3e13, 9.5)]
    )
    first, second = (line.split("|") for line in text.strip().splitlines()[2:])
    # 29 months removed for 0.01 PFLOP; then 2 months more for 0.02.
    assert [cell.strip() for cell in first[1:-1]] == ["10", "b", "11.00", "one seed", "2,900", ""]
    assert [cell.strip() for cell in second[1:-1]][4:] == ["1,033", "100.0"]


def test_summaries_need_the_same_images(monkeypatch, tmp_path):
    recipe = recipe_of()
    for seed, images in ((0, 5), (1, 6)):
        point = Point("base", (), 1e12, seed)
        finish(tmp_path / "runs" / point.name, point, recipe, np.ones(images), seed)
    rows = [{"arm": "base", "budget": 1e12, "seed": s, "mae": 1.0} for s in (0, 1)]
    with pytest.raises(InputError, match="not of the same images"):
        summarize(rows, tmp_path)


def test_a_real_point_is_run_by_the_command_of_a_user(monkeypatch, tmp_path):
    """One arm that trains and one whose network does not exist; through subprocesses."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.chdir(ROOT)
    (tmp_path / "arms.py").write_text(
        "def get_arms():\n    return {'tiny': {'model.name': 'tiny'},"
        " 'none': {'model.name': 'efficientnet_z9'}}"
    )
    small = {"data.config": "64-small", "batch_size": 8, "steps": 2, "evaluate_every": 1e3}
    small |= {"eval_batch_size": 16, "budget_flops": 0.0}
    args = [f"--config.{key}={value}" for key, value in small.items()]
    args.append("--extensions=tests/support/tiny_backbone.py")  # which the runs must be handed, too
    assert run_door(tmp_path, "--seeds=1", *args) == 1
    rows = {row["arm"]: row for row in table(tmp_path, "runs.csv")}
    assert "efficientnet_z9" in rows["none"]["error"]
    report = json.loads((tmp_path / "out/runs/tiny-0-0/report.json").read_text())
    assert float(rows["tiny"]["mae"]) == pytest.approx(report["age"]["mae"], rel=1e-4)
    assert int(rows["tiny"]["steps"]) == 2
    check_config(sweeps.load_config(tmp_path / "out/runs/tiny-0-0/config.json"))

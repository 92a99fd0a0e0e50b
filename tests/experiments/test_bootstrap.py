"""Paired comparison of two recipes: against closed forms, and what it must refuse."""

import itertools
import json
import math

import numpy as np
import pytest

from boneage_jax import compare as compare_door
from boneage_jax.cli import exit_status
from boneage_jax.errors import InputError
from boneage_jax.experiments.bootstrap import Predictions, compare, read_predictions


def made(errors, true=None):
    """Predictions with the given signed errors [runs, n]."""
    errors = np.atleast_2d(errors)
    true = np.linspace(20, 200, errors.shape[1]) if true is None else true
    return Predictions(tuple(map(str, range(errors.shape[1]))), true, true + errors)


def test_the_interval_is_that_of_the_mean_difference():
    """One run each: mean +- 1.96 standard errors of the differences, image by image."""
    rng = np.random.default_rng(0)
    hard = rng.gamma(3, 4, 400)  # images differ in difficulty, which cancels
    a, b = hard + rng.normal(0, 1, 400), hard + rng.normal(0.5, 1, 400)
    found = compare(made(a), made(b))
    each = np.abs(b) - np.abs(a)
    error = each.std(ddof=1) / 20
    assert found["difference"] == pytest.approx(each.mean())
    assert found["difference_low"] == pytest.approx(each.mean() - 1.96 * error, abs=0.1 * error)
    assert found["difference_high"] == pytest.approx(each.mean() + 1.96 * error, abs=0.1 * error)
    # Unpaired, the interval would be several times as wide.
    assert error * 4 < np.hypot(a.std(), b.std()) / 20


def test_p_of_few_images_counts_all_signs():
    each = np.array([3.0, -1.0, 4.0, 1.5, 5.0, -0.5, 2.0])
    sums = [abs(np.dot(signs, each)) for signs in itertools.product((-1, 1), repeat=len(each))]
    expected = np.mean(np.array(sums) >= abs(each.sum()))
    assert compare(made(np.full(7, 9.0)), made(9.0 + each))["p"] == pytest.approx(expected)
    assert compare(made(np.full(5, 9.0)), made(np.full(5, 10.0)))["p"] == 2 / 2**5


def test_p_of_many_images_is_that_of_the_normal_limit():
    """Random signs give the sum a variance of the sum of squares."""
    rng = np.random.default_rng(1)
    a = rng.uniform(30, 60, 400)
    each = rng.normal(0.2, 4, 400)
    expected = math.erfc(abs(each.sum()) / np.sqrt(2 * np.square(each).sum()))
    assert 0.1 < expected < 0.9
    assert compare(made(a), made(a + each))["p"] == pytest.approx(expected, abs=0.02)


def test_one_image_says_nothing():
    found = compare(made([3.0]), made([5.0]))
    assert found["difference_low"] == found["difference_high"] == 2.0 and found["p"] == 1.0


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(2)
    held = 0
    for seed in range(40):
        true = rng.uniform(20, 200, 50)
        a = made(np.abs(rng.normal(8, 3, (1, 50))), true)
        b = made(a.errors + rng.normal(1.0, 3, (1, 50)), true)
        # Some errors of b are negative and count with their size, so the mean is measured apart.
        found = compare(a, b, seed)
        held += found["difference_low"] <= 1.0 <= found["difference_high"]
    assert 32 <= held <= 40


def test_runs_from_several_seeds_widen_the_interval_by_their_spread():
    """All images alike and runs apart: the images say nothing, the seeds everything."""
    a = made(np.repeat([[9.0], [11.0], [10.0]], 30, axis=1))
    b = made(np.repeat([[8.0], [9.0], [10.0]], 30, axis=1))
    found = compare(a, b)
    assert found["difference"] == pytest.approx(-1.0)
    # Standard error of each mean of three: sd (ddof=0) / sqrt(3) = 0.471, of their difference
    # 0.667.
    width = (found["difference_high"] - found["difference_low"]) / 2
    assert width == pytest.approx(1.96 * 0.667, rel=0.15)
    assert (found["runs_a"], found["runs_b"]) == (3, 3)


def test_the_same_predictions_do_not_differ():
    a = made(np.arange(20.0))
    found = compare(a, a)
    assert found["difference"] == found["difference_low"] == found["difference_high"] == 0.0
    assert found["p"] == 1.0


def write(folder, ids, true, predicted):
    folder.mkdir(parents=True, exist_ok=True)
    rows = zip(ids, true, predicted, strict=True)
    lines = ["id,true_age,predicted_age", *(f"{i},{t},{p}" for i, t, p in rows)]
    (folder / "predictions.csv").write_text("\n".join(lines) + "\n")
    return folder


def run(monkeypatch, *args):
    return exit_status(compare_door.main, [*map(str, args)])


def test_the_door_matches_images_by_id(tmp_path, monkeypatch, capsys):
    a = write(tmp_path / "a", ["7", "8", "9"], [10, 20, 30], [11, 22, 33])
    b = write(tmp_path / "b", ["9", "7", "8"], [30, 10, 20], [31, 11, 20])
    assert run(monkeypatch, a, f"{b},{a}", f"--json={tmp_path / 'found.json'}") == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["mae_a"] == pytest.approx(2.0)
    assert found["mae_b"] == pytest.approx((2 / 3 + 2.0) / 2)
    assert found["runs_b"] == 2
    assert "B - A: -0.67 months" in capsys.readouterr().out


def test_tables_as_spreadsheets_save_them(tmp_path, monkeypatch, capsys):
    a = write(tmp_path / "a", ["7", "8"], [10, 20], [11, 22]) / "predictions.csv"
    text = a.read_text()
    (tmp_path / "bom.csv").write_text(text, encoding="utf-8-sig")
    (tmp_path / "semicolons.csv").write_text(text.replace(",", ";").replace("22", "22,0"))
    for name in ("bom.csv", "semicolons.csv"):
        assert run(monkeypatch, a, tmp_path / name) == 0
        assert "B - A: +0.00 months" in capsys.readouterr().out
    assert run(monkeypatch, a, a, f"--json={a}") == 2
    assert "names an input" in capsys.readouterr().err and a.read_text() == text


def test_another_split_is_read_from_its_evaluation(tmp_path):
    workdir = write(tmp_path / "a", ["1", "2"], [10, 20], [11, 21])
    write(workdir / "evaluation" / "train", ["3", "4"], [10, 20], [15, 25])
    assert read_predictions([workdir], "train").errors.mean() == pytest.approx(5.0)
    assert read_predictions([workdir]).errors.mean() == pytest.approx(1.0)
    with pytest.raises(InputError, match="evaluate --workdir"):
        read_predictions([workdir], "test")


@pytest.mark.parametrize(
    ("ids", "true", "predicted", "words"),
    [
        (["7", "8", "6"], [10, 20, 30], [1, 2, 3], "id 6 is in one"),
        (["7", "8", "9"], [10, 21, 30], [1, 2, 3], "true age of id 8"),
        (["7", "8", "8"], [10, 20, 20], [1, 2, 3], "an id twice"),
        (["7", "8", "9"], [10, 20, 30], [1, "nan", 3], "no number"),
        (["7", "8", "9"], [10, 20, 30], [1, "old", 3], "damaged"),
        ([], [], [], "no rows"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(
    tmp_path, monkeypatch, capsys, ids, true, predicted, words
):
    a = write(tmp_path / "a", ["7", "8", "9"], [10, 20, 30], [11, 22, 33])
    b = write(tmp_path / "b", ids, true, predicted)
    assert run(monkeypatch, a, b) == 2
    error = capsys.readouterr().err.strip()
    assert words in error and len(error.splitlines()) == 1


def test_a_missing_run_is_named(tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, tmp_path / "nowhere", tmp_path) == 2
    assert "nowhere" in capsys.readouterr().err

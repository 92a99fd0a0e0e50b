"""An ensemble of two small networks: what they say together, and what they cost together."""

import csv
import json
import shutil

import jax
import numpy as np
import pytest

import boneage_jax
import tests.support.tiny_backbone  # noqa: F401  (registers the network)
from boneage_jax.config import base_config, check_config
from boneage_jax.errors import InputError
from boneage_jax.evaluation.evaluate_run import evaluate
from boneage_jax.inference.load_trained import load_trained, member_count
from boneage_jax.training.ensemble import member_config
from configs import cls
from tfds_rsna.hand_phantom.render import make_phantom


def small_config():
    config = base_config()
    config.members = 2
    config.seed = 3
    config.data.config = "64-small"
    config.model.name = "tiny"
    config.batch_size = config.eval_batch_size = 8
    config.steps = 3
    config.evaluate_every = 1e3
    config.bias_correction = "shift"
    return config


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory):
    """The workdir and the report of a finished ensemble."""
    folder = tmp_path_factory.mktemp("ensemble")
    patch = pytest.MonkeyPatch()
    patch.setenv("TFDS_DATA_DIR", str(folder / "data"))
    report = boneage_jax.train(small_config(), folder / "run")
    yield folder / "run", report
    patch.undo()


def read(folder, name="predicted_age"):
    with (folder / "predictions.csv").open() as file:
        return np.array([float(row[name]) for row in csv.DictReader(file)])


def test_the_members_are_the_same_recipe_from_seeds_of_their_own(ensemble):
    workdir, _ = ensemble
    configs = [json.loads((workdir / f"members/{k}/config.json").read_text()) for k in (0, 1)]
    assert [c["seed"] for c in configs] == [6, 7]
    assert configs[0] | {"seed": 7} == configs[1]
    assert np.abs(read(workdir / "members/0") - read(workdir / "members/1")).max() > 0.1


def test_costs_are_those_of_all_members(ensemble):
    workdir, report = ensemble
    single = [json.loads((workdir / f"members/{k}/report.json").read_text()) for k in (0, 1)]
    for key in ("train_flops", "parameters", "flops_per_prediction", "eval_flops"):
        assert report["compute"][key] == 2 * single[0]["compute"][key], key
    assert [point["flops"] for point in report["curve"]] == [
        single[0]["compute"]["train_flops"],
        report["compute"]["train_flops"],
    ]
    assert report["config"]["members"] == 2
    assert json.loads((workdir / "report.json").read_text())["age"] == report["age"]


def test_the_predictor_is_the_mean_of_the_members(ensemble):
    workdir, _ = ensemble
    images = [make_phantom(index, 96, "test").image for index in range(3)]
    together = boneage_jax.load_predictor(workdir, batch_size=4)
    each = [
        boneage_jax.load_predictor(workdir / f"members/{k}", batch_size=4)(images) for k in (0, 1)
    ]
    shifts = [np.load(workdir / f"members/{k}/calibration.npz")["intercept"] for k in (0, 1)]
    raw = [one["bone_age_months"] - shift for one, shift in zip(each, shifts, strict=True)]
    shift = np.load(workdir / "calibration.npz")["intercept"]
    found = together(images)
    np.testing.assert_allclose(found["bone_age_months"], np.mean(raw, axis=0) + shift, atol=2e-3)
    np.testing.assert_allclose(
        found["p_male"], np.mean([one["p_male"] for one in each], axis=0), atol=1e-4
    )


def test_evaluate_reads_all_members(ensemble):
    workdir, report = ensemble
    again = evaluate(workdir)
    assert again["age"]["mae"] == pytest.approx(report["age"]["mae"], abs=1e-3)
    assert again["compute"]["train_flops"] == report["compute"]["train_flops"]
    assert again["curve"] == report["curve"]
    # On another split the correction is the one fitted on validation, the same for every image.
    train = evaluate(workdir, "train")
    assert train["age"]["mae"] != pytest.approx(report["age"]["mae"], abs=1e-6)


def test_a_finished_ensemble_is_not_trained_again_and_a_lost_member_is(ensemble):
    workdir, report = ensemble
    first = workdir / "members/0/checkpoints"
    before = sorted(path.stat().st_mtime_ns for path in first.iterdir())
    assert boneage_jax.train(small_config(), workdir)["age"]["mae"] == report["age"]["mae"]
    assert sorted(path.stat().st_mtime_ns for path in first.iterdir()) == before
    changed = small_config()
    changed.optimizer.learning_rate = 0.5
    with pytest.raises(InputError, match="learning_rate"):
        boneage_jax.train(changed, workdir)
    assert json.loads((workdir / "config.json").read_text())["optimizer"]["learning_rate"] != 0.5


def test_another_reading_reports_again_and_trains_nothing(ensemble, tmp_path):
    """The report is that of the networks as they are: two magnifications, ages of labels."""
    workdir = shutil.copytree(ensemble[0], tmp_path / "run")
    kept = [load_trained(workdir / f"members/{k}").variables for k in (0, 1)]
    changed = small_config()
    changed.test_zooms = "1,1.2"
    changed.test_atlas = 5.0
    report = boneage_jax.train(changed, workdir)
    for part in (".", "members/0", "members/1"):
        assert np.abs(read(workdir / part) - read(ensemble[0] / part)).max() > 1e-3
    for number in (0, 1):
        jax.tree.map(
            np.testing.assert_array_equal,
            kept[number],
            load_trained(workdir / f"members/{number}").variables,
        )
        config = json.loads((workdir / f"members/{number}/config.json").read_text())
        assert config["test_zooms"] == "1,1.2"
    ages = read(workdir)
    assert np.isin(ages, np.arange(241)).all() and not np.isin(read(ensemble[0]), ages).any()
    moved, labels = read(workdir, "network_age"), read(workdir, "true_age")
    assert report["age"]["mae_before_atlas"] == pytest.approx(
        np.abs(moved - labels).mean(), abs=1e-3
    )
    assert report["curve"][-1]["mae"] == pytest.approx(report["age"]["mae"], abs=1e-3)
    assert evaluate(workdir)["age"]["mae"] == pytest.approx(report["age"]["mae"], abs=1e-3)
    (workdir / "calibration.npz").rename(workdir / "hidden.npz")  # as before the end of a training
    assert evaluate(workdir)["age"]["mae"] == pytest.approx(report["age"]["mae"], abs=1e-3)
    with pytest.raises(InputError, match="has not ended"):
        evaluate(workdir, "train")
    (workdir / "hidden.npz").rename(workdir / "calibration.npz")
    train = evaluate(workdir, "train")  # with the atlas and the correction of calibration.npz
    assert train["age"]["mae_before_atlas"] != pytest.approx(train["age"]["mae"], abs=1e-6)
    images = [make_phantom(index, 96, "test").image for index in range(3)]
    found = boneage_jax.load_predictor(workdir, batch_size=4)(images)["bone_age_months"]
    assert np.isin(found, np.arange(241)).all()
    cost, before = report["compute"], ensemble[1]["compute"]
    assert cost["train_flops"] == before["train_flops"]
    assert 1.9 < cost["flops_per_prediction"] / before["flops_per_prediction"] < 2.1


def test_one_network_is_not_mistaken_for_the_ensemble(ensemble):
    with pytest.raises(InputError, match="members/0"):
        load_trained(ensemble[0])


def test_the_budget_is_shared_and_masks_are_paid_once():
    config = check_config(small_config())
    with config.unlocked():
        config.steps, config.budget_flops = 0, 10e12
    own = member_config(config, 1, mask_flops=int(2e12))
    # Each member takes the masks from its own budget: 2 x (6 - 2) + 2 = 10.
    assert own.budget_flops == 6e12 and own.members == 1
    assert member_config(config, 0).budget_flops == 5e12


@pytest.mark.parametrize("wrong", [0, -2])
def test_a_wrong_number_of_members_is_refused(wrong):
    config = small_config()
    config.members = wrong
    with pytest.raises(InputError, match=r"config\.members"):
        check_config(config)


@pytest.mark.parametrize(("budget", "count"), [(26e12, 1), (49e12, 1), (50e12, 2), (77e12, 3)])
def test_a_budget_is_shared_by_as_many_members_as_it_holds(budget, count):
    config = cls.get_config("subset")
    assert config.member_flops == 25e12
    config.budget_flops = budget
    assert member_count(check_config(config)) == count
    if count > 1:
        own = member_config(check_config(config), count - 1)
        assert own.budget_flops == pytest.approx(budget / count) and member_count(own) == 1


def test_members_and_their_price_exclude_each_other():
    config = cls.get_config("subset")
    config.members = 2
    with pytest.raises(InputError, match="exclude each other"):
        check_config(config)

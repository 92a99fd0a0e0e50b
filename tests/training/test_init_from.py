"""A run that goes on from another network: what it predicts at step 0, and what it has cost."""

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import boneage_jax
import tests.support.tiny_backbone  # noqa: F401  (registers the networks)
from boneage_jax.config import base_config
from boneage_jax.data.info import DataInfo
from boneage_jax.data.source import Split
from boneage_jax.inference.calibration import Calibration
from boneage_jax.inference.load_trained import load_members, load_trained
from boneage_jax.inference.publish import write_published
from boneage_jax.training.final_report import view_of
from boneage_jax.training.initialize import start_from
from boneage_jax.training.run import build_run, load_run
from boneage_jax.training.train import warn_of_few
from configs import cls
from tests.inference.test_view import view  # noqa: F401  (a fixture)

OLD = Path(__file__).parents[1] / "inference" / "old_workdirs"
SIDE = 64


@pytest.fixture(scope="module")
def images():
    return [np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE), np.uint8) for seed in (0, 1)]


def _run(trained, mean, std):
    """A new run of the same network on data with other ages."""
    config = trained.network.config.copy_and_resolve_references()
    return build_run(config, DataInfo(SIDE, 96, mean, std), jax.devices()[:1])


def test_ages_at_step_0_are_those_of_the_source(images):
    source = OLD / "bone_age"
    trained = load_trained(source, devices=jax.devices()[:1])
    run = _run(trained, 40.0, 7.0)
    state = start_from(run.fresh_state(), source, run.network.task)
    sexes = {"male": np.array([1, -1])}
    expected = trained.network.read([trained.variables], images, sexes)[0]
    found = run.network.read([state.eval_variables], images, sexes)[0]
    for key, values in expected.items():
        np.testing.assert_allclose(found[key], values, rtol=2e-5, err_msg=key)
    plain = start_from(run.fresh_state(), source, run.network.task, rescale=False)
    other = run.network.read([plain.eval_variables], images, sexes)[0]["predicted_age"]
    np.testing.assert_allclose(  # the same standardised age, read on the new scale
        (other - 40) / 7,
        (expected["predicted_age"] - trained.network.info.age_mean) / trained.network.info.age_std,
        rtol=1e-4,
        atol=1e-4,
    )


def test_a_name_is_a_start_whose_flops_count(tiny_train, tmp_path, monkeypatch):
    (tmp_path / "w").mkdir()
    write_published(load_members(OLD / "ensemble"), OLD / "ensemble", tmp_path / "w" / "two")
    monkeypatch.setenv("BONEAGE_JAX_WEIGHTS", str(tmp_path / "w"))
    first = load_trained(OLD / "ensemble" / "members" / "0")
    same = first.network.config
    changed = {
        "model__sex_input": bool(same.model.sex_input),
        "model__hidden": int(same.model.hidden),
        "loss__age": str(same.loss.age),
        "steps": 2,
    }
    report, _ = tiny_train("plain", **changed)
    again, _ = tiny_train("from", init_from="two", **changed)
    costs = [each["compute"]["train_flops"] for each in (report, again)]
    assert costs[1] - costs[0] == first.flops_spent > 0
    with pytest.raises(
        boneage_jax.InputError, match=r"config\.init_from: twoo.*did you mean two\?"
    ):
        tiny_train("wrong", init_from="twoo", **changed)


def test_what_is_no_single_training_is_not_continued(tmp_path):
    with pytest.raises(boneage_jax.InputError, match=r"an ensemble; name one of it: .*members/0$"):
        load_run(OLD / "ensemble")
    published = tmp_path / "one"
    write_published(load_members(OLD / "bone_age"), OLD / "bone_age", published)
    with pytest.raises(boneage_jax.InputError, match=r"one holds a published .* no optimizer"):
        load_run(published)
    (published / "empty").mkdir()
    shutil.copy(OLD / "bone_age" / "config.json", published / "empty")
    shutil.copy(OLD / "bone_age" / "facts.json", published / "empty")
    with pytest.raises(boneage_jax.InputError, match="empty holds no checkpoints"):
        load_run(published / "empty")


def test_the_shipped_recipe_names_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("BONEAGE_JAX_WEIGHTS", "")
    monkeypatch.setattr(boneage_jax, "__file__", str(tmp_path / "__init__.py"))
    config = cls.get_config("finetune")
    with pytest.raises(boneage_jax.InputError, match=f"init_from: {config.init_from} holds no run"):
        boneage_jax.train(config, tmp_path / "run")


def test_a_small_training_keeps_the_view_network_that_it_began_from(view, tmp_path, capsys):  # noqa: F811
    """Or turned radiographs, several hands and masks would be accepted after a fine-tuning."""
    source = tmp_path / "source"
    shutil.copytree(OLD / "bone_age", source)
    known = Calibration.load(source / "calibration.npz")
    dataclasses.replace(known, view=view).save(source / "calibration.npz")
    trained = load_trained(OLD / "bone_age")
    trained.network.config.init_from = str(source)
    split = Split("train", [{"image": np.zeros((64, 64, 1), np.uint8)}], np.zeros(40, int), {})
    found, flops = view_of([trained], split, split)
    assert flops == 0 and found.threshold == view.threshold
    np.testing.assert_array_equal(found.weights["hidden"], view.weights["hidden"])
    assert "view network: that of" in capsys.readouterr().err
    note = {"mode": "multiply", "cost": {}}
    (source / "background").mkdir()
    (source / "background" / "background.json").write_text(json.dumps(note))
    assert view_of([trained], split, split) == (None, 0)  # it knows images without background
    trained.network.config.init_from = str(tmp_path / "gone")
    assert view_of([trained], split, split) == (None, 0)
    assert "no view network: " in capsys.readouterr().err


def test_few_radiographs_to_go_on_with_are_said(capsys):
    config = base_config()
    config.init_from = "somewhere"
    for count, said in ((29, True), (30, False)):
        sizes = {config.data.train_split: count - 9, config.data.eval_split: 9}
        warn_of_few(config, SimpleNamespace(split=lambda name, sizes=sizes: range(sizes[name])))
        assert ("boneage_jax.calibrate fits an interval" in capsys.readouterr().err) is said

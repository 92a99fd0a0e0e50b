"""A run that goes on from another network: what it predicts at step 0, and what it has cost."""

from pathlib import Path

import jax
import numpy as np
import pytest

import boneage_jax
import tests.support.tiny_backbone  # noqa: F401  (registers the networks)
from boneage_jax.data.info import DataInfo
from boneage_jax.inference.load_trained import load_members, load_trained
from boneage_jax.inference.publish import write_published
from boneage_jax.training.initialize import start_from
from boneage_jax.training.run import build_run
from configs import cls

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


def test_the_shipped_recipe_names_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("BONEAGE_JAX_WEIGHTS", "")
    monkeypatch.setattr(boneage_jax, "__file__", str(tmp_path / "__init__.py"))
    config = cls.get_config("finetune")
    with pytest.raises(boneage_jax.InputError, match=f"init_from: {config.init_from} holds no run"):
        boneage_jax.train(config, tmp_path / "run")

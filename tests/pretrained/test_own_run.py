"""Weights of own runs and of other files as the start of a training: what fits, what it costs."""

from pathlib import Path

import flax.core
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import boneage_jax
from boneage_jax.config import base_config, check_config
from boneage_jax.data.info import DataInfo
from boneage_jax.errors import InputError
from boneage_jax.storage.state import flops_of
from boneage_jax.tasks.registry import make_task
from boneage_jax.training.check_run import check_pretrained
from boneage_jax.training.initialize import start_from, with_pretrained_backbone
from boneage_jax.training.optimizer import make_optimizer
from boneage_jax.training.run import Run, fresh_state
from tests.support.random_run import write_run
from tests.support.weight_files import lite0_arrays

COST = 12_345_678_901  # FLOPs of an own run


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of Lite0 with averaged weights, as training leaves it; its numbers are random."""
    folder = tmp_path_factory.mktemp("runs") / "lite0"
    config = base_config()
    config.model.name, config.model.padding = "efficientnet_lite0", "symmetric"
    return folder, write_run(folder, config, COST)


def test_an_own_run_gives_its_averaged_backbone(workdir):
    folder, state = workdir
    name = "efficientnet_lite0"
    variables = boneage_jax.load_pretrained(name, folder)
    saved = {
        "params": flax.core.unfreeze(state.ema_params)["backbone"],
        "batch_stats": flax.core.unfreeze(state.batch_stats)["backbone"],
    }
    jax.tree.map(np.testing.assert_array_equal, variables, saved)
    options = boneage_jax.pretrained_options(name, folder)
    assert options == {"padding": "symmetric", "bn_epsilon": 1e-3}
    model = boneage_jax.create_model(name, **options)
    images = jax.ShapeDtypeStruct((2, 32, 32, 1), np.float32)
    assert jax.eval_shape(model.apply, variables, images).shape == (2, 1280)


@pytest.mark.parametrize(
    ("name", "keeps_heads"),
    [("efficientnet_lite0", True), ("efficientnet_lite2", True), ("efficientnet_b2", False)],
)
def test_a_run_that_starts_from_an_own_one_counts_its_cost(workdir, name, keeps_heads, capsys):
    folder, before = workdir
    config = base_config()
    config.model.name, config.model.padding = name, "symmetric"
    config.model.pretrained = str(folder)
    config.model.grown_from = "" if name == "efficientnet_lite0" else "efficientnet_lite0"
    config = check_config(config)
    check_pretrained(config)
    config.budget_flops = 1e15
    with pytest.raises(InputError, match="budget_flops does not know what the run in"):
        check_pretrained(config)
    info = DataInfo(image_size=96, train_images=64, age_mean=120.0, age_std=40.0)
    task, optimizer = make_task(config, info, None), make_optimizer(config.optimizer, 100)
    shapes = jax.eval_shape(lambda: fresh_state(config, info, task, optimizer))
    fresh = jax.tree.map(lambda x: jnp.full(x.shape, 7, x.dtype), shapes)
    backbone = with_pretrained_backbone(fresh, config)
    whole = start_from(fresh, folder, task, grown_from=config.model.grown_from)
    saved = flax.core.unfreeze(before.ema_params)
    for found in (backbone, whole):
        assert flops_of(found.flops_spent) == COST
        kernel = found.params["backbone"]["block4c_expand_conv"]["kernel"]
        small = saved["backbone"]["block4c_expand_conv"]["kernel"]
        np.testing.assert_array_equal(kernel[..., : small.shape[2], : small.shape[3]], small)
        # New channels are those of the fresh network, which the known ones do not read.
        assert np.all(kernel[..., small.shape[3] :] == 7)
        assert not np.any(kernel[..., small.shape[2] :, : small.shape[3]])
    assert np.all(backbone.params["sex"]["kernel"] == 7)
    kept = np.array_equal(whole.params["sex"]["kernel"], saved["sex"]["kernel"])
    assert kept is keeps_heads
    assert ("the heads have random weights" in capsys.readouterr().err) is not keeps_heads


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.grown_from": "efficientnet_lite1"}, "holds efficientnet_lite0"),
        ({"model.grown_from": ""}, "another network"),
        ({"model.name": "efficientnet_lite0"}, "is config.model.name; leave it out"),
        (
            {"model.name": "efficientnet_b0", "model.grown_from": "efficientnet_lite4"},
            "b0 does not",
        ),
        ({"model.padding": "same"}, r"needs --config\.model\.padding=symmetric$"),
        ({"normalize": "none"}, r"needs --config\.normalize=zscore$"),
        ({"finetune.last_blocks": 3}, "what is new must be trained"),
        ({"task": "hand_mask", "model.name": "unet"}, "grown_from is for bone_age"),
        ({"init_from": ""}, "needs the weights of that network"),
    ],
)
def test_a_start_that_does_not_fit_is_refused_before_data_are_made(
    workdir, tmp_path, changes, words
):
    config = base_config()
    config.data.data_dir = str(tmp_path / "data")
    config.model.name, config.model.padding = "efficientnet_lite2", "symmetric"
    config.model.grown_from = "efficientnet_lite0"
    config.init_from, config.steps = str(workdir[0]), 2
    config.update_from_flattened_dict(changes)
    with pytest.raises(InputError, match=words):
        boneage_jax.train(config, tmp_path / "run")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"model.name": "efficientnet_b0"},
        {"model.name": "efficientnet_b4", "model.grown_from": "efficientnet_lite1"},
    ],
)
def test_a_file_of_another_network_is_refused_before_the_step_is_compiled(
    tmp_path, monkeypatch, phantoms, changes
):
    file = tmp_path / "tf_efficientnet_lite0.safetensors"
    save_file(lite0_arrays(), file)
    config = base_config()
    config.data.config, config.data.data_dir = "64-small", phantoms
    config.model.pretrained, config.steps, config.batch_size = str(file), 1, 4
    config.update_from_flattened_dict(changes)
    monkeypatch.setattr(Run, "compile_ahead", None)  # would fail with another error
    with pytest.raises(InputError, match="looks like efficientnet_lite0"):
        boneage_jax.train(config, tmp_path / "run", devices=jax.devices()[:1])


def test_own_runs_of_another_kind_are_refused(workdir):
    folder, _ = workdir
    name = "efficientnet_lite0"
    with pytest.raises(InputError, match="is a run of efficientnet_lite0, not of efficientnet_b4"):
        boneage_jax.load_pretrained("efficientnet_b4", folder)
    with pytest.raises(InputError, match="leave num_classes out"):
        boneage_jax.load_pretrained(name, folder, num_classes=3)
    with pytest.raises(InputError, match="normalize=zscore"):
        boneage_jax.source_normalization(name, folder)


def test_a_network_of_the_package_is_known_by_its_name():
    found = boneage_jax.load_pretrained(
        "efficientnet_lite0", "rsna_lite0_224", padding="same", bn_epsilon=1e-3
    )
    folder = Path(boneage_jax.__file__).parent / "weights" / "rsna_lite0_224"
    same = boneage_jax.load_pretrained(
        "efficientnet_lite0", folder, padding="same", bn_epsilon=1e-3
    )
    jax.tree.map(np.testing.assert_array_equal, found, same)

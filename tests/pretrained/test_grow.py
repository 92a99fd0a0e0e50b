"""A large EfficientNet that starts from a small one: what it computes, and what it refuses."""

import shutil

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

import boneage_jax
import tests.support.tiny_backbone  # noqa: F401  (registers the networks)
from boneage_jax.config import base_config
from boneage_jax.errors import InputError
from boneage_jax.inference.load_trained import load_trained
from boneage_jax.models.efficientnet import EfficientNet
from boneage_jax.pretrained.grow import check_grown, grow
from boneage_jax.training.run import load_run
from tests.support.random_run import write_run

SIDE = 48


@pytest.fixture
def images():
    return np.random.default_rng(3).normal(size=(2, SIDE, SIDE, 1)).astype(np.float32)


def initialised(name: str, images: np.ndarray, seed: int = 0):
    model = EfficientNet(name, drop_path_rate=0.0)
    variables = jax.jit(model.init)(jax.random.key(seed), images)
    return model, jax.device_get(variables)


def trained(variables):
    """Every scale, bias and statistic another than at the start."""
    draw = np.random.default_rng(5)
    flat = {
        path: value
        if path[-1] == "kernel"
        else draw.uniform(0.5, 1.5, value.shape).astype(np.float32)
        for path, value in flatten_dict(variables).items()
    }
    return unflatten_dict(flat)


@pytest.mark.parametrize("family", ["lite0", "b0"])
def test_the_first_features_are_those_of_the_small_network(family, images):
    small, found = initialised(f"tiny_{family}", images)
    large, fresh = initialised(f"larger_{family}", images, seed=1)
    found = trained(found)
    variables = grow(found, fresh)
    _, expected = jax.jit(lambda v, x: small.apply(v, x, endpoints=True))(found, images)
    _, features = jax.jit(lambda v, x: large.apply(v, x, endpoints=True))(variables, images)
    assert len(flatten_dict(variables)) > len(flatten_dict(found))  # blocks that the other lacks
    for name, values in expected.items():
        known = values.shape[-1]
        scale = np.abs(values).max()
        assert np.abs(features[name][..., :known] - values).max() < 1e-4 * scale, name
    # What is new is there to be learnt from, and not constant.
    others = np.asarray(features["block7"][..., expected["block7"].shape[-1] :])
    assert others.shape[-1] > 0 and np.all(others.std((0, 1, 2)) > 0)


def test_without_excitation_to_take_over_all_channels_are_let_through_alike(images):
    _, found = initialised("tiny_lite0", images)
    _, fresh = initialised("larger_b0", images, seed=1)
    found = trained(found)
    variables = grow(found, fresh)
    params = variables["params"]
    gates = [layer for name, layer in params.items() if name.endswith("se_expand")]
    assert len(gates) == sum(name.endswith("se_reduce") for name in params) > 7
    for gate in gates:  # sigmoid(0) for each image and channel
        assert not gate["kernel"].any() and not gate["bias"].any()
    # What passes a gate of 1/2 has half of the mean and a quarter of the variance.
    before, after = (v["batch_stats"]["block3a_project_bn"] for v in (found, variables))
    np.testing.assert_allclose(after["mean"][:40], before["mean"] / 2, rtol=1e-6)
    np.testing.assert_allclose(after["var"][:40], before["var"] / 4, rtol=1e-6)
    assert np.all(after["mean"][40:] == 0) and np.all(after["var"][40:] == 1)
    np.testing.assert_array_equal(
        params["block3a_dwconv"]["kernel"][..., : 6 * 24],
        found["params"]["block3a_dwconv"]["kernel"],
    )


def test_arrays_that_do_not_fit_are_named(images):
    _, small = initialised("tiny_lite0", images)
    _, large = initialised("larger_b0", images)
    with pytest.raises(
        InputError, match=r"block1a_bn/mean is \[40\] there and \[32\] .* nowhere wider"
    ):
        grow(large, small)
    excites = {"block1a_se_expand": large["params"]["block1a_se_expand"]}
    with pytest.raises(InputError, match=r"block1a_se_expand/\w+ is .* there and nothing in"):
        grow({"params": excites}, small)


@pytest.mark.parametrize(
    ("small", "large", "words"),
    [
        ("efficientnet_lite2", "efficientnet_b4", ""),
        ("efficientnet_b0", "efficientnet_b4", ""),
        ("efficientnet_lite4", "efficientnet_b4", ""),
        ("efficientnet_lite2", "efficientnet_lite3", ""),
        ("efficientnet_lite2", "efficientnet_b1", "efficientnet_b1 does not hold it"),
        ("efficientnet_b5", "efficientnet_b4", "efficientnet_b4 does not hold it"),
        ("efficientnet_b0", "efficientnet_lite2", "holds none that excites"),
        ("efficientnet_lite1", "efficientnet_lite0", "does not hold it"),
        ("resnet50", "efficientnet_b4", "resnet50 is no EfficientNet"),
        ("efficientnet_lite2", "unet", "unet is no EfficientNet"),
    ],
)
def test_which_network_holds_which(small, large, words):
    if not words:
        check_grown(small, large)
        return
    with pytest.raises(InputError, match=words):
        check_grown(small, large)


def test_a_training_grows_from_a_run_and_then_needs_it_no_more(tmp_path, phantoms):
    source = base_config()
    source.model.name = "tiny_lite0"
    state = write_run(tmp_path / "source", source, flops=10**9 + 1)
    config = base_config()
    config.update_from_flattened_dict(
        {
            "data.config": "64-small",
            "data.data_dir": phantoms,
            "model.name": "larger_lite0",
            "model.grown_from": "tiny_lite0",
            "init_from": str(tmp_path / "source"),
            "batch_size": 4,
            "steps": 1,
            "view_steps": 0,
            "optimizer.learning_rate": 1e-9,  # the step changes nothing
        }
    )
    one_device = jax.devices()[:1]
    report = boneage_jax.train(config, tmp_path / "run", devices=one_device)
    params = load_trained(tmp_path / "run").variables["params"]
    small = flatten_dict(state.ema_params["backbone"])
    for path, value in flatten_dict(params["backbone"]).items():
        if path in small:
            corner = tuple(map(slice, small[path].shape))
            np.testing.assert_allclose(value[corner], small[path], atol=1e-6, err_msg=str(path))
    own = load_run(tmp_path / "run", one_device)[0].train_flops
    assert report["compute"]["train_flops"] == 10**9 + 1 + own
    shutil.rmtree(tmp_path / "source")
    assert boneage_jax.train(config, tmp_path / "run", devices=one_device) == report

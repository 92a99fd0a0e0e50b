"""A large EfficientNet that starts from a small one: what it computes, and what it refuses."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

import tests.support.tiny_backbone  # noqa: F401  (registers the networks)
from boneage_jax.errors import InputError
from boneage_jax.models.efficientnet import VARIANTS, EfficientNet
from boneage_jax.pretrained.grow import check_grown, grow

SIDE = 48


@pytest.fixture(autouse=True)
def large(monkeypatch):
    """Networks wider and deeper than the tiny ones."""
    for name in ("b0", "lite0"):
        spec = VARIANTS[f"efficientnet_{name}"]._replace(width=1.3, depth=0.5)
        monkeypatch.setitem(VARIANTS, f"large_{name}", spec)


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
    large, fresh = initialised(f"large_{family}", images, seed=1)
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
    _, fresh = initialised("large_b0", images, seed=1)
    params = grow(trained(found), fresh)["params"]
    gates = [layer for name, layer in params.items() if name.endswith("se_expand")]
    assert len(gates) == sum(name.endswith("se_reduce") for name in params) > 7
    for gate in gates:  # sigmoid(0) for each image and channel
        assert not gate["kernel"].any() and not gate["bias"].any()
    np.testing.assert_array_equal(
        params["block3a_dwconv"]["kernel"][..., : 6 * 24],
        found["params"]["block3a_dwconv"]["kernel"],
    )


def test_arrays_that_do_not_fit_are_named(images):
    _, small = initialised("tiny_lite0", images)
    _, large = initialised("large_b0", images)
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

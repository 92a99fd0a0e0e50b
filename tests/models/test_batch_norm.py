"""BatchNorm against flax.linen.BatchNorm followed by the activation, in float64."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from boneage_jax.models.batch_norm import BatchNorm

CHANNELS = 5


class Reference(nn.Module):
    """The same layers, as flax has them."""

    train: bool
    act: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.BatchNorm(not self.train, momentum=0.9, epsilon=1e-3, name="norm")(x)
        return nn.swish(x) if self.act else x


def arrays() -> tuple[jax.Array, dict, dict]:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(1.0, 2.0, (3, 4, 6, CHANNELS)))
    params = {"scale": rng.uniform(0.5, 2, CHANNELS), "bias": rng.normal(size=CHANNELS)}
    stats = {"mean": rng.normal(size=CHANNELS), "var": rng.uniform(0.5, 2, CHANNELS)}
    return x, jax.tree.map(jnp.asarray, params), jax.tree.map(jnp.asarray, stats)


@pytest.mark.parametrize("act", [False, True])
@pytest.mark.parametrize("train", [False, True])
def test_outputs_gradients_and_statistics_are_those_of_flax(train, act):
    with jax.enable_x64(True):
        x, params, stats = arrays()
        ours = BatchNorm(not train, momentum=0.9, act=nn.swish if act else None)
        weights = jnp.asarray(np.random.default_rng(1).normal(size=x.shape))

        def our_loss(x, params):
            y, new = ours.apply({"params": params, "batch_stats": stats}, x, mutable="batch_stats")
            return (y * weights).sum(), (y, new["batch_stats"])

        def their_loss(x, params):
            variables = {"params": {"norm": params}, "batch_stats": {"norm": stats}}
            y, new = Reference(train, act).apply(variables, x, mutable="batch_stats")
            return (y * weights).sum(), (y, new["batch_stats"]["norm"])

        got, expected = (
            jax.grad(loss, argnums=(0, 1), has_aux=True)(x, params)
            for loss in (our_loss, their_loss)
        )
        assert jax.tree.structure(got) == jax.tree.structure(expected)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_synced_statistics_are_those_of_the_whole_batch():
    x = (
        jax.random.normal(jax.random.key(0), (4, 3, 3, CHANNELS))
        * jnp.arange(1.0, 5)[:, None, None, None]
    )
    alone = BatchNorm(use_running_average=False, act=nn.relu)
    synced = BatchNorm(use_running_average=False, act=nn.relu, axis_name="devices")
    variables = alone.init(jax.random.key(0), x)
    weights = jax.random.normal(jax.random.key(1), x.shape)

    def loss(params, x, weights, model):
        everything = variables | {"params": params}
        y, new = model.apply(everything, x, mutable="batch_stats")
        return (y * weights).sum(), new

    expected, stats = jax.grad(loss, has_aux=True)(variables["params"], x, weights, alone)

    def on_device(x, weights):
        grads, new = jax.grad(loss, has_aux=True)(variables["params"], x, weights, synced)
        return jax.lax.psum(grads, "devices"), new

    # vmap with an axis name has the collectives of pmap without needing devices.
    grads, new = jax.vmap(on_device, axis_name="devices")(x[:, None], weights[:, None])
    for shard in range(4):
        for a, b in ((grads, expected), (new, stats)):
            for ours, whole in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
                np.testing.assert_allclose(ours[shard], whole, rtol=1e-4, atol=1e-5)


def test_bfloat16_input_is_normalised_in_float32():
    x = (10 + jax.random.normal(jax.random.key(0), (64, 4, 4, 3))).astype(jnp.bfloat16)
    model = BatchNorm(use_running_average=False)
    variables = model.init(jax.random.key(0), x)
    y, new = model.apply(variables, x, mutable="batch_stats")
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(new)} == {jnp.dtype("float32")}
    exact = np.asarray(x, np.float64)
    wanted = (exact - exact.mean((0, 1, 2))) / np.sqrt(exact.var((0, 1, 2)) + 1e-3)
    np.testing.assert_allclose(np.asarray(y, np.float64), wanted, atol=0.03)

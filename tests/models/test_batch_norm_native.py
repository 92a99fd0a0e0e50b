"""Compiled moments and gradients of batch normalisation, against JAX in float64."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from boneage_jax.models.batch_norm_native import native_moments, native_scale_and_act
from boneage_jax.models.flops import count_flops
from boneage_jax.models.native import call

pytestmark = pytest.mark.usefixtures("native_library")

SHAPES = [(2, 3, 5, 7), (4, 9, 9, 24), (300, 40), (8, 33, 31, 72), (1, 1, 1, 1), (70_000, 3)]


def close(found, exact, rtol=1e-5):
    for mine, theirs in zip(jax.tree.leaves(found), exact, strict=True):
        assert mine.dtype == jnp.float32 and mine.shape == theirs.shape
        np.testing.assert_allclose(
            mine, theirs, rtol=rtol, atol=2e-6 * np.abs(theirs).max() + 1e-30
        )


def in_float64(fn, *args):
    with jax.enable_x64(True):
        return [np.asarray(x) for x in jax.tree.leaves(fn(*map(jnp.asarray, args)))]


@pytest.mark.parametrize("shape", SHAPES)
def test_moments_and_their_gradient(shape):
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape).astype(np.float32) * 3 + 5
    weights = rng.normal(size=(2, shape[-1])).astype(np.float32)
    axes = tuple(range(len(shape) - 1))

    def exact(x):
        return x.mean(axes), jnp.square(x).mean(axes)

    def loss(moments):
        return lambda x: sum(jnp.vdot(w, m) for w, m in zip(weights, moments(x), strict=True))

    wide = x.astype(np.float64)
    close(jax.jit(native_moments)(jnp.asarray(x)), in_float64(exact, wide))
    close(jax.grad(loss(native_moments))(jnp.asarray(x)), in_float64(jax.grad(loss(exact)), wide))


@pytest.mark.parametrize("act", [None, nn.relu, nn.relu6, nn.swish])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_gradient_of_the_activation(shape, act):
    rng = np.random.default_rng(1)
    x, weights = rng.normal(size=(2, *shape)).astype(np.float32) * 4
    a, b = rng.normal(size=(2, shape[-1])).astype(np.float32)

    def exact(x, a, b):
        return x * a + b if act is None else act(x * a + b)

    def loss(function):
        return lambda *args: (jnp.asarray(weights) * function(*args)).sum()

    def ours(x, a, b):
        return native_scale_and_act(x, a, b, act)

    wide = [value.astype(np.float64) for value in (x, a, b)]
    gradients = [jax.grad(loss(fn), (0, 1, 2)) for fn in (ours, exact)]
    close(ours(x, a, b), in_float64(exact, *wide))
    close(jax.jit(gradients[0])(x, a, b), in_float64(gradients[1], *wide), rtol=2e-5)


@pytest.mark.parametrize("act", [nn.relu, nn.relu6, nn.swish])
def test_the_slope_at_the_kinks_and_far_away(act):
    """Where a derivative is a matter of choice it is JAX's, and nothing overflows."""
    values = -1e30, -200.0, -90.0, -87.5, -1.0, -0.0, 0.0, 3.0, 6.0, 6.5, 88.5, 200.0, 1e30
    x = jnp.array(values)[:, None]
    one, zero = jnp.ones(1), jnp.zeros(1)
    found = jax.grad(lambda x: native_scale_and_act(x, one, zero, act).sum())(x)
    expected = jax.grad(lambda x: act(x).sum())(x)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stays_so(value):
    """Steps with such values are found by it and skipped."""
    x = jnp.ones((4, 20)).at[2, 7].set(value)
    mean, square = native_moments(x)
    assert not np.isfinite(mean[7]) and not np.isfinite(square[7])
    assert np.isfinite(np.delete(mean, 7)).all()
    grad = jnp.ones((4, 20)).at[1, 3].set(value)
    by_x, by_a, by_b = jax.vjp(
        lambda *args: native_scale_and_act(*args, nn.swish), jnp.ones((4, 20)), *jnp.ones((2, 20))
    )[1](grad)
    assert not np.isfinite(by_x[1, 3]) and not np.isfinite(by_a[3]) and not np.isfinite(by_b[3])


def test_it_counts_no_flops_as_in_any_other_form():
    def loss(x, a, b):
        mean, square = native_moments(x)
        return (native_scale_and_act(x, a + mean, b + square, nn.swish)).sum()

    assert count_flops(jax.grad(loss, (0, 1, 2)), jnp.ones((4, 8)), *jnp.ones((2, 8))) == 0


def test_shapes_that_do_not_fit_are_refused_not_read():
    x, a = jnp.ones((4, 8)), jnp.ones(7)
    for run in (
        lambda: call("batch_norm_moments", (2, 7), x),
        lambda: call("batch_norm_gradient", [(4, 8), (2, 8)], x, x, a, a, activation=3),
        lambda: call("batch_norm_gradient", [(4, 8), (2, 8)], x, x, x[0], x[0], activation=9),
    ):
        with pytest.raises(Exception, match="batch norm: "):
            jax.block_until_ready(run())

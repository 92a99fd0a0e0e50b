"""Pooling and transposed convolution against Flax's own, with all their gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from boneage_jax.models.flops import count_flops
from boneage_jax.models.resolution import (
    ConvTranspose,
    by_dilation,
    by_phases,
    by_product,
    conv_transpose,
    max_pool,
)


def _normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("shape", [(2, 6, 10, 3), (1, 2, 2, 1)])
def test_pooling_and_its_gradient_are_those_of_flax(shape):
    with jax.enable_x64(True):
        x = jnp.asarray(_normal(*shape))
        reference, back = jax.vjp(lambda x: nn.max_pool(x, (2, 2), (2, 2)), x)
        ours, our_back = jax.vjp(max_pool, x)
        gradient = jnp.asarray(_normal(*reference.shape, seed=1))
        np.testing.assert_array_equal(ours, reference)
        np.testing.assert_array_equal(our_back(gradient)[0], back(gradient)[0])


def test_equal_values_give_their_gradient_to_the_first():
    # Whole numbers from 0 to 2: most windows hold their maximum more than once.
    x = jnp.asarray(np.random.default_rng(2).integers(0, 3, (4, 8, 8, 5)), jnp.bfloat16)
    pool = lambda x: nn.max_pool(x, (2, 2), (2, 2))  # noqa: E731
    gradient = jnp.asarray(_normal(4, 4, 4, 5), jnp.bfloat16)
    got, want = (jax.vjp(f, x)[1](gradient)[0] for f in (max_pool, pool))
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got, want)
    blocks = np.asarray(got, np.float32).reshape(4, 4, 2, 4, 2, 5)
    np.testing.assert_array_equal(blocks.sum((2, 4)), np.asarray(gradient, np.float32))


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_transposed_convolution_is_that_of_flax(size):
    """Parameters, initial values, result and both gradients, in float64 and on an odd size."""
    reference = nn.ConvTranspose(4, (size, size), (2, 2))
    ours = ConvTranspose(4, size)
    key = jax.random.key(0)
    x = _normal(2, 5, 7, 3)
    variables = reference.init(key, jnp.asarray(x, jnp.float32))
    jax.tree.map(
        np.testing.assert_array_equal, ours.init(key, jnp.asarray(x, jnp.float32)), variables
    )
    with jax.enable_x64(True):
        exact = jax.tree.map(lambda p: jnp.asarray(p, jnp.float64), variables)
        exact["params"]["bias"] += jnp.arange(4.0)
        weight = jnp.asarray(_normal(2, 10, 14, 4, seed=1))

        def run(module):
            def loss(variables, x):
                y = module.apply(variables, x)
                return jnp.vdot(weight, y), y

            return jax.jit(jax.grad(loss, (0, 1), has_aux=True))(exact, jnp.asarray(x))

        got = run(ours.clone(dtype=jnp.float64))
        want = run(reference.clone(dtype=jnp.float64))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), got, want)


@pytest.mark.parametrize("size", [2, 3])
def test_phases_do_no_more_arithmetic(size):
    x, kernel = jnp.zeros((1, 8, 8, 4)), jnp.zeros((size, size, 4, 6))
    # Each pixel that is read meets each tap once.
    assert count_flops(by_phases, x, kernel) == 2 * 8 * 8 * size * size * 4 * 6
    assert count_flops(by_dilation, x, kernel) == 2 * 8 * 8 * size * size * 4 * 6
    if size == 2:
        assert count_flops(by_product, x, kernel) == 2 * 8 * 8 * size * size * 4 * 6
    both = jax.grad(lambda x, kernel: jnp.sum(jnp.square(conv_transpose(x, kernel))), (0, 1))
    assert count_flops(both, x, kernel) == 3 * 2 * 8 * 8 * size * size * 4 * 6


def test_gradients_hold_no_scatter_and_no_dilated_convolution():
    """What was slow is gone from the compiled program, not only from the source."""
    if jax.default_backend() != "cpu":
        pytest.skip("CPUs get a form of their own")
    module = ConvTranspose(4, 3)
    x = jnp.zeros((2, 8, 8, 3))
    variables = module.init(jax.random.key(0), x)

    def loss(variables, x):
        return jnp.sum(jnp.square(module.apply(variables, max_pool(x))))

    program = jax.jit(jax.grad(loss, (0, 1))).lower(variables, x).compile().as_text()
    assert "scatter(" not in program
    dilated = [line for line in program.splitlines() if "rhs_dilate" in line]
    assert not dilated

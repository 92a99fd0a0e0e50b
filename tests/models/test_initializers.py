"""Kernels drawn together are those that Flax draws one by one."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import ScopeParamShapeError

from boneage_jax.models.initializers import init_variables, kernel_of, variance_scaling

FEATURES = (1, 64, 65, 300)  # kernels of less than a chunk, of a chunk, of one and some, of many


class Chain(nn.Module):
    """Dense layers with BatchNorm; `joint` draws their kernels by our initializers."""

    joint: bool
    remat: bool = False

    @nn.compact
    def __call__(self, x, *, train=False):
        scaled = variance_scaling if self.joint else _by_flax
        dense = nn.remat(nn.Dense) if self.remat else nn.Dense
        for index, features in enumerate(FEATURES):
            init = scaled(2.0, "fan_out") if index % 2 else scaled(1.0, "fan_in")
            x = dense(features, kernel_init=init, name=f"dense{index}")(x)
            x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Conv(3, (3, 3), kernel_init=scaled(2.0, "fan_in"))(x[:, None, None])


def _by_flax(scale, mode):
    return nn.initializers.variance_scaling(scale, mode, "truncated_normal")


INPUT = jax.ShapeDtypeStruct((1, 64), jnp.float32)


def flax_values(key, **options):
    """What Flax makes, compiled as one program, which is how the networks were made before."""
    return jax.jit(lambda key: Chain(False, **options).init(key, jnp.zeros((1, 64))))(key)


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    # Equal bits with jax 0.10; jaxlib 0.12 rounds some of the products otherwise.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=5e-7, atol=0), found, expected)


@pytest.mark.parametrize("seed", [0, 7])
def test_values_are_those_of_flax(seed):
    key = jax.random.fold_in(jax.random.key(seed), 0)
    found = init_variables(Chain(True), key, INPUT)
    assert isinstance(found["params"]["dense3"]["kernel"], np.ndarray)  # not drawn by Flax
    assert_same(found, flax_values(key))


def test_values_under_a_trace_are_the_same():
    key = jax.random.key(3)
    assert_same(jax.jit(lambda key: init_variables(Chain(True), key, INPUT))(key), flax_values(key))


def test_another_generator_is_left_to_flax():
    key = jax.random.key(0, impl="rbg")
    assert_same(init_variables(Chain(True), key, INPUT), flax_values(key))


def test_kernels_made_inside_a_transformation_are_left_to_flax():
    key = jax.random.key(0)
    assert_same(init_variables(Chain(True, remat=True), key, INPUT), flax_values(key, remat=True))


class Product(nn.Module):
    """A matrix product whose initializer is watched."""

    start: object
    features: int = 3

    @nn.compact
    def __call__(self, x):
        return x @ kernel_of(self, self.start, (x.shape[-1], self.features))


def test_the_initializer_of_a_kernel_that_is_given_is_not_called():
    called = []

    def init(key, shape, dtype):
        called.append(shape)
        return jnp.full(shape, 2.0, dtype)

    x = jnp.ones((1, 4))
    variables = Product(init).init(jax.random.key(0), x)
    assert called == [(4, 3)] and float(variables["params"]["kernel"][0, 0]) == 2.0
    np.testing.assert_array_equal(Product(init).apply(variables, x), [[8.0] * 3])
    assert called == [(4, 3)]
    with pytest.raises(ScopeParamShapeError):  # shapes are compared all the same
        Product(init, features=5).apply(variables, x)

"""Depthwise convolution: each implementation against lax in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from boneage_jax.errors import InputError
from boneage_jax.models.depthwise import depthwise_conv, fused_depthwise


def both(implementation, x, kernel, grad, **options):
    """Output, input gradient, kernel gradient."""
    out, pull = jax.vjp(
        lambda x, k: depthwise_conv(x, k, implementation=implementation, **options), x, kernel
    )
    return (out, *pull(grad(out.shape)))


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(9, 9), (8, 11), (5, 6)])
@pytest.mark.parametrize("padding", ["SAME", "symmetric"])
def test_shifted_products_are_the_convolution(kernel, stride, shape, padding):
    rng = np.random.default_rng(0)
    pads = padding if padding == "SAME" else ((kernel // 2,) * 2,) * 2
    with jax.enable_x64(True):
        x = jnp.asarray(rng.normal(size=(2, *shape, 3)))
        weights = jnp.asarray(rng.normal(size=(kernel, kernel, 1, 3)))
        options = {"stride": stride, "padding": pads}

        def grad(shape):
            return jnp.asarray(np.random.default_rng(1).normal(size=shape))

        expected = both("lax", x, weights, grad, **options)
        for ours, theirs in zip(both("shift", x, weights, grad, **options), expected, strict=True):
            assert ours.dtype == theirs.dtype
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)


def test_bfloat16_stays_close_to_float32():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(4, 12, 12, 8)), jnp.float32)
    weights = jnp.asarray(rng.normal(size=(3, 3, 1, 8)), jnp.float32)

    def grad(shape):
        return jnp.ones(shape, jnp.bfloat16)

    low = both("shift", x.astype(jnp.bfloat16), weights.astype(jnp.bfloat16), grad)
    high = both("lax", x, weights, lambda shape: jnp.ones(shape))
    for a, b in zip(low, high, strict=True):
        assert a.dtype == jnp.bfloat16
        assert np.abs(a.astype(jnp.float32) - b).max() < 0.03 * np.abs(b).max()


def test_unknown_implementation_is_refused():
    with pytest.raises(InputError, match="shift"):
        depthwise_conv(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1)), implementation="fft")


def test_gradients_under_pmap_and_a_device_mesh_are_those_of_one_device():
    """A custom derivative rule must compose with both ways of spreading a batch."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(4, 8, 8, 3)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 1, 3)), jnp.float32)

    def loss(kernel, x):
        return jnp.sin(depthwise_conv(x, kernel, implementation="shift")).sum()

    expected = jax.grad(loss)(kernel, x)
    mapped = jax.pmap(
        lambda k, x: jax.lax.psum(jax.grad(loss)(k, x), "batch"), "batch", in_axes=(None, 0)
    )(kernel, x[:, None])
    np.testing.assert_allclose(mapped[0], expected, rtol=1e-4, atol=1e-4)

    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("batch",))
    spread = jax.device_put(x, jax.NamedSharding(mesh, jax.P("batch")))
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(kernel, spread), expected, 1e-4, 1e-4)


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize(("stride", "shape"), [(1, (9, 8)), (2, (8, 8)), (2, (7, 11))])
@pytest.mark.parametrize("padding", ["SAME", "symmetric"])
def test_the_fused_convolution_is_that_of_what_it_fuses(kernel, stride, shape, padding):
    """Against lax and JAX's own derivative of the three operations, in float64."""
    rng = np.random.default_rng(0)
    pads = padding if padding == "SAME" else ((kernel // 2,) * 2,) * 2
    with jax.enable_x64(True):
        x = jnp.asarray(rng.normal(size=(2, *shape, 3)))
        a, b = (jnp.asarray(rng.normal(size=3)) for _ in range(2))
        weights = jnp.asarray(rng.normal(size=(kernel, kernel, 1, 3)))
        options = {"stride": stride, "padding": pads}

        def fused(x, a, b, weights):
            return fused_depthwise(x, a, b, weights, act=jax.nn.swish, **options)

        def plain(x, a, b, weights):
            y = jax.nn.swish(x * a + b)
            return depthwise_conv(y, weights, implementation="lax", **options)

        out, pull = jax.vjp(plain, x, a, b, weights)
        grad = jnp.asarray(rng.normal(size=out.shape))
        ours, our_pull = jax.vjp(fused, x, a, b, weights)
        for got, expected in zip((ours, *our_pull(grad)), (out, *pull(grad)), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)


def test_fused_bfloat16_gradients_are_bfloat16_and_close():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(4, 12, 12, 8)), jnp.bfloat16)
    a, b = jnp.linspace(0.5, 1.5, 8), jnp.linspace(-1.0, 1.0, 8)
    weights = jnp.asarray(rng.normal(size=(3, 3, 1, 8)), jnp.bfloat16)

    def run(x, a, b, weights):
        return fused_depthwise(x, a, b, weights, act=jax.nn.swish)

    out, pull = jax.vjp(run, x, a, b, weights)
    exact = [v.astype(jnp.float32) for v in (x, a, b, weights)]
    exact_out, exact_pull = jax.vjp(run, *exact)
    exact_grads = exact_pull(jnp.ones_like(exact_out))
    grads = pull(jnp.ones_like(out))
    assert [g.dtype for g in grads] == [jnp.bfloat16, jnp.float32, jnp.float32, jnp.bfloat16]
    for low, high in zip((out, *grads), (exact_out, *exact_grads), strict=True):
        low = low.astype(jnp.float32)
        assert jnp.abs(low - high).max() < 0.03 * jnp.abs(high).max()

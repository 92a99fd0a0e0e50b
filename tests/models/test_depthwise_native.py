"""The compiled depthwise convolution against XLA's own in float64."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from boneage_jax.models.depthwise import depthwise_conv
from boneage_jax.models.depthwise_native import native_conv, native_fused
from boneage_jax.models.flops import count_flops
from boneage_jax.models.native import is_enabled
from boneage_jax.models.registry import create_model

pytestmark = pytest.mark.usefixtures("native_library")


def pads_of(padding, size, shape, stride):
    if padding != "SAME":
        return padding
    pads = jax.lax.padtype_to_pads(shape, (size, size), (stride, stride), padding)
    return tuple((int(low), int(high)) for low, high in pads)


def with_gradients(conv, x, kernel, grad):
    out, pull = jax.vjp(conv, x, kernel)
    return (out, *pull(grad.astype(out.dtype)))


def compare(shape, size, stride, padding):
    rng = np.random.default_rng(sum(shape) + size)
    pads = pads_of(padding, size, shape[1:3], stride)
    x, kernel = rng.normal(size=shape), rng.normal(size=(size, size, 1, shape[3]))
    theirs = functools.partial(depthwise_conv, stride=stride, padding=pads, implementation="lax")
    out = jax.eval_shape(theirs, x.astype(np.float32), kernel.astype(np.float32))
    grad = jnp.asarray(rng.normal(size=out.shape), jnp.float32)
    found = with_gradients(
        lambda x, k: native_conv(x, k, stride, pads),
        jnp.asarray(x, jnp.float32),
        jnp.asarray(kernel, jnp.float32),
        grad,
    )
    with jax.enable_x64(True):
        exact = jnp.asarray(grad, jnp.float64)
        expected = with_gradients(theirs, jnp.asarray(x), jnp.asarray(kernel), exact)
        expected = [np.asarray(value) for value in expected]
    for mine, exact in zip(found, expected, strict=True):
        assert mine.shape == exact.shape and mine.dtype == jnp.float32
        np.testing.assert_allclose(mine, exact, rtol=1e-4, atol=3e-6 * np.abs(exact).max())


@pytest.mark.parametrize("size", [1, 3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_it_is_the_convolution(size, stride):
    compare((2, 11, 9, 40), size, stride, "SAME")


@pytest.mark.parametrize("channels", [1, 7, 8, 13, 16, 24, 33, 48, 72, 136])
def test_any_number_of_channels(channels):
    """Blocks of 32, 16 and 8 channels, and what is left."""
    compare((3, 6, 7, channels), 3, 2, "SAME")


@pytest.mark.parametrize(
    ("shape", "size", "stride", "padding"),
    [
        ((1, 1, 1, 8), 5, 1, "SAME"),  # less than the kernel: no pixel has all taps
        ((2, 3, 20, 8), 7, 2, "SAME"),
        ((1, 20, 2, 8), 5, 2, ((2, 2), (2, 2))),
        ((9, 4, 5, 16), 3, 1, ((0, 3), (5, 1))),  # wider than the kernel
        ((2, 8, 8, 16), 3, 2, ((0, 0), (0, 0))),
        ((2, 9, 6, 16), 3, 4, ((1, 0), (0, 1))),  # pixels that no output reads
    ],
)
def test_borders(shape, size, stride, padding):
    compare(shape, size, stride, padding)


@pytest.mark.parametrize("act", [nn.swish, nn.relu6])
@pytest.mark.parametrize("stride", [1, 2])
def test_normalised_and_activated_on_the_way(act, stride):
    """Gradients of all four arguments, though only the first is kept for them."""
    rng = np.random.default_rng(0)
    shapes = (2, 9, 8, 24), (24,), (24,), (3, 3, 1, 24)
    args = [rng.normal(size=shape) for shape in shapes]
    pads = ((1, 1), (1, 1))

    def theirs(x, a, b, kernel):
        conv = functools.partial(depthwise_conv, implementation="lax", stride=stride, padding=pads)
        return conv(act(x * a + b), kernel)

    def ours(x, a, b, kernel):
        return native_fused(x, a, b, kernel, act, stride, pads)

    found, pull = jax.vjp(ours, *(jnp.asarray(x, jnp.float32) for x in args))
    weights = rng.normal(size=found.shape)
    gradients = pull(jnp.asarray(weights, jnp.float32))
    with jax.enable_x64(True):
        expected, pull = jax.vjp(theirs, *map(jnp.asarray, args))
        exact = [np.asarray(x) for x in (expected, *pull(jnp.asarray(weights)))]
    for mine, theirs in zip((found, *gradients), exact, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=3e-6 * np.abs(theirs).max())


def test_the_same_bits_each_time():
    rng = np.random.default_rng(0)
    x, grad = (jnp.asarray(rng.normal(size=(8, 20, 20, 96)), jnp.float32) for _ in range(2))
    kernel = jnp.asarray(rng.normal(size=(3, 3, 1, 96)), jnp.float32)
    conv = jax.jit(
        lambda x, k, g: with_gradients(lambda x, k: native_conv(x, k, 1, ((1, 1),) * 2), x, k, g)
    )
    first = conv(x, kernel, grad)
    for _ in range(10):
        jax.tree.map(np.testing.assert_array_equal, conv(x, kernel, grad), first)


def test_examples_one_by_one_are_those_together():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(4, 6, 6, 8)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 1, 8)), jnp.float32)
    pads = ((1, 1), (1, 1))
    alone = jax.vmap(lambda x: native_conv(x[None], kernel, 1, pads)[0])(x)
    np.testing.assert_array_equal(alone, native_conv(x, kernel, 1, pads))


@pytest.mark.parametrize("stride", [1, 2])
def test_its_flops_are_those_of_the_convolution(stride):
    x, kernel = jnp.ones((2, 12, 12, 3)), jnp.ones((5, 5, 1, 3))
    pads = pads_of("SAME", 5, (12, 12), stride)

    def ours(x, k):
        return native_conv(x, k, stride, pads).sum()

    def theirs(x, k):
        return depthwise_conv(x, k, stride=stride, padding=pads, implementation="lax").sum()

    assert count_flops(ours, x, kernel) == count_flops(theirs, x, kernel) > 0
    both = [jax.grad(fn, (0, 1)) for fn in (ours, theirs)]
    assert count_flops(both[0], x, kernel) == count_flops(both[1], x, kernel)


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("depthwise_forward", [(1, 4, 4, 8), (3, 3, 1, 7), (1, 4, 4, 8)]),
        ("depthwise_forward", [(1, 4, 4, 8), (9, 9, 1, 8), (1, 4, 4, 8)]),
        ("depthwise_input_gradient", [(2, 4, 4, 8), (3, 3, 1, 8), (1, 4, 4, 8)]),
        ("depthwise_kernel_gradient", [(1, 4, 4, 8), (1, 4, 4, 8), (2, 2, 1, 8)]),
    ],
)
def test_shapes_that_do_not_fit_are_refused_not_read(name, shapes):
    *given, result = shapes
    call = jax.ffi.ffi_call("boneage_jax_" + name, jax.ShapeDtypeStruct(result, jnp.float32))
    options = {key: np.int64(value) for key, value in {"stride": 1, "top": 1, "left": 1}.items()}
    with pytest.raises(Exception, match="depthwise: "):
        jax.block_until_ready(call(*map(jnp.ones, given), **options))


def test_several_devices_keep_to_xla():
    """Foreign code cannot be shared out; the tests have four devices."""
    assert not is_enabled()
    model = create_model("efficientnet_lite0", drop_path_rate=0.0)
    images = jnp.ones((1, 32, 32, 1))
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    traced = jax.make_jaxpr(lambda v: model.apply(v, images, train=True, mutable=["batch_stats"]))
    assert "ffi_call" not in str(traced(variables))

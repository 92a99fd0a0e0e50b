"""The compiled convolution against XLA's own in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from boneage_jax.models.convolution import conv_general_dilated
from boneage_jax.models.flops import count_flops
from boneage_jax.models.unet import UNet

pytestmark = pytest.mark.usefixtures("native_library")

native = functools.partial(conv_general_dilated, native=True)
LAYOUT = ("NHWC", "HWIO", "NHWC")


def with_gradients(conv, padding, x, kernel, grad):
    def convolve(x, kernel):
        return conv(x, kernel, (1, 1), padding, dimension_numbers=LAYOUT)

    out, pull = jax.vjp(convolve, x, kernel)
    return out, *pull(grad)


def compare(shape, window, padding="SAME"):
    """Compares result and gradients; `window` is (rows, columns, C, F)."""
    rng = np.random.default_rng(sum(shape) + sum(window))
    x, kernel = rng.normal(size=shape), rng.normal(size=window)
    with jax.enable_x64(True):
        theirs = functools.partial(
            jax.lax.conv_general_dilated, dimension_numbers=LAYOUT, window_strides=(1, 1)
        )
        out = jax.eval_shape(functools.partial(theirs, padding=padding), x, kernel)
        grad = rng.normal(size=out.shape)
        exact = with_gradients(
            jax.lax.conv_general_dilated, padding, *map(jnp.asarray, (x, kernel, grad))
        )
        exact = [np.asarray(value) for value in exact]
    single = [jnp.asarray(value, jnp.float32) for value in (x, kernel, grad)]
    for mine, expected in zip(with_gradients(native, padding, *single), exact, strict=True):
        assert mine.shape == expected.shape and mine.dtype == jnp.float32
        largest = np.abs(expected).max(initial=0)
        np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=3e-6 * largest)


@pytest.mark.parametrize("outputs", [1, 5, 10, 16, 17, 20, 40, 64, 80, 112])
def test_any_number_of_channels_out(outputs):
    """One to three vectors in a block, several blocks, and what is left of a vector."""
    compare((2, 6, 29, 3), (3, 3, 3, outputs))


@pytest.mark.parametrize("inputs", [1, 2, 10, 11, 20, 43])
def test_any_number_of_channels_in(inputs):
    compare((3, 11, 7, inputs), (3, 3, inputs, 13))


@pytest.mark.parametrize("width", [1, 2, 3, 4, 8, 11, 12, 13, 19, 300])
def test_any_width(width):
    """Tiles of twelve, eight, four pixels and single ones; lines longer than a sum."""
    compare((1, 5, width, 6), (3, 3, 6, 10))
    compare((1, 3, width, 6), (3, 3, 6, 20))


@pytest.mark.parametrize("height", [1, 2, 7, 8, 9, 40])
def test_any_height(height):
    """Fewer lines than a band, whole bands, and a rest."""
    compare((9, height, 5, 4), (3, 3, 4, 7))


@pytest.mark.parametrize(
    ("window", "padding"),
    [
        ((1, 1), "SAME"),
        ((2, 2), "SAME"),
        ((5, 3), "SAME"),
        ((3, 7), "VALID"),
        ((3, 3), ((4, 0), (0, 5))),  # beyond what a tap can reach
        ((3, 3), ((0, 12), (14, 0))),  # lines that are padding alone
        ((2, 3), ((-1, 0), (-2, -3))),  # crops
        ((3, 3), ((-4, 9), (-5, 12))),  # the other side of the image
    ],
)
def test_windows_and_borders(window, padding):
    compare((2, 7, 9, 5), (*window, 5, 12), padding)


def test_the_same_bits_each_time_and_for_each_batch():
    rng = np.random.default_rng(0)
    x, kernel = (
        jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((8, 20, 20, 6), (3, 3, 6, 9))
    )
    grad = jnp.asarray(rng.normal(size=(8, 20, 20, 9)), jnp.float32)
    conv = jax.jit(functools.partial(with_gradients, native, "SAME"))
    first = conv(x, kernel, grad)
    for _ in range(10):
        jax.tree.map(np.testing.assert_array_equal, conv(x, kernel, grad), first)
    alone = [with_gradients(native, "SAME", x[i : i + 1], kernel, grad[i : i + 1]) for i in (0, 7)]
    for i, found in zip((0, 7), alone, strict=True):
        for mine, whole in zip(found[:2], first[:2], strict=True):
            np.testing.assert_array_equal(mine[0], whole[i])


def test_values_that_are_not_finite_stay_where_they_are_read():
    """What is beyond a window's end, up to a whole vector, has no part in it."""
    x = np.ones((1, 4, 30, 2), np.float32)
    x[0, 1, 20, 1] = np.inf
    kernel = jnp.ones((3, 3, 2, 3))
    out = native(jnp.asarray(x), kernel, (1, 1), "SAME", dimension_numbers=LAYOUT)
    hit = np.zeros((4, 30), bool)
    hit[0:3, 19:22] = True
    np.testing.assert_array_equal(np.isinf(out[0, ..., 0]), hit)
    grad = jnp.ones((1, 4, 30, 3)).at[0, 3, 29].set(jnp.nan)
    _, _, of_kernel = with_gradients(native, "SAME", jnp.ones_like(x), kernel, grad)
    # The last pixel meets the border's zeros at the last column and row of the window: 0 * NaN.
    assert np.isnan(of_kernel).all()
    grad = jnp.ones((1, 4, 30, 3)).at[0, 3, 29, 1].set(jnp.nan)
    _, _, of_kernel = with_gradients(native, "SAME", jnp.ones_like(x), kernel, grad)
    assert np.isnan(of_kernel[..., 1]).all() and np.isfinite(of_kernel[..., ::2]).all()


def test_its_flops_are_those_of_the_convolution():
    x, kernel = jnp.ones((2, 12, 10, 3)), jnp.ones((3, 3, 3, 7))

    def loss(conv):
        return lambda x, k: conv(x, k, (1, 1), "SAME", dimension_numbers=LAYOUT).sum()

    both = [loss(conv) for conv in (native, jax.lax.conv_general_dilated)]
    assert count_flops(both[0], x, kernel) == count_flops(both[1], x, kernel) > 0
    both = [jax.grad(fn, (0, 1)) for fn in both]
    assert count_flops(both[0], x, kernel) == count_flops(both[1], x, kernel)


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("convolution", [(1, 4, 4, 8), (3, 3, 7, 5), (1, 4, 4, 5)]),
        ("convolution", [(1, 4, 4, 8), (3, 3, 8, 5), (1, 4, 4, 6)]),
        ("convolution", [(2, 4, 4, 8), (3, 3, 8, 5), (1, 4, 4, 5)]),
        ("convolution", [(4, 4, 8), (3, 3, 8, 5), (1, 4, 4, 5)]),
        ("convolution_kernel_gradient", [(1, 4, 4, 8), (1, 4, 4, 5), (3, 3, 8, 6)]),
        ("convolution_kernel_gradient", [(1, 4, 4, 8), (2, 4, 4, 5), (3, 3, 8, 5)]),
    ],
)
def test_shapes_that_do_not_fit_are_refused_not_read(name, shapes):
    *given, result = shapes
    call = jax.ffi.ffi_call("boneage_jax_" + name, jax.ShapeDtypeStruct(result, jnp.float32))
    with pytest.raises(Exception, match="convolution: "):
        jax.block_until_ready(call(*map(jnp.ones, given), top=np.int64(1), left=np.int64(1)))


def test_strides_and_groups_are_left_to_lax():
    x = jnp.ones((1, 8, 8, 4))
    for inputs, strides, options in (
        (4, (2, 2), {}),
        (2, (1, 1), {"feature_group_count": 2}),
        (4, (1, 1), {"rhs_dilation": (2, 2)}),
    ):
        kernel = jnp.ones((3, 3, inputs, 4))
        conv = functools.partial(
            native, window_strides=strides, padding="SAME", dimension_numbers=LAYOUT, **options
        )
        assert "ffi_call" not in str(jax.make_jaxpr(conv)(x, kernel))


def test_several_devices_keep_to_xla():
    """Foreign code cannot be shared out; the tests have four devices."""
    model = UNet("unet")
    images = jnp.ones((1, 32, 32, 1))
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    traced = jax.make_jaxpr(lambda v: model.apply(v, images, train=True, mutable=["batch_stats"]))
    assert "ffi_call" not in str(traced(variables))

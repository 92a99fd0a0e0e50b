"""Convolutions with a weight gradient of their own against lax's, in float64."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from boneage_jax.models.convolution import conv_general_dilated, packed_conv, pixels_of
from boneage_jax.models.flops import count_flops


def _normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def _gradients(module, variables, x):
    weight = jnp.asarray(_normal(*module.apply(variables, x).shape, seed=3))

    def loss(variables, x):
        y = module.apply(variables, x)
        return jnp.vdot(weight, y), y

    return jax.jit(jax.grad(loss, (0, 1), has_aux=True))(variables, x)


@pytest.mark.parametrize(
    ("channels", "features", "window", "options"),
    [
        (5, 2, (3, 3), {}),
        (5, 2, (2, 2), {}),
        (5, 2, (1, 1), {}),
        (5, 2, (3, 5), {"padding": ((0, 3), (2, 1))}),
        (5, 2, (3, 3), {"padding": "VALID"}),
        (5, 2, (3, 3), {"padding": ((4, 0), (0, 3))}),  # beyond what a tap can reach
        (2, 5, (3, 3), {}),
        (2, 5, (3, 2), {"padding": ((0, 1), (0, 0))}),  # 8 columns: four pixels at once
        (30, 31, (3, 3), {}),  # many channels: each pixel alone
        # Left to lax.
        (4, 2, (3, 3), {"strides": (2, 2)}),
        (4, 2, (3, 3), {"kernel_dilation": (2, 1)}),
        (4, 2, (3, 3), {"feature_group_count": 2}),
    ],
)
def test_results_and_gradients_are_those_of_lax(channels, features, window, options):
    reference = nn.Conv(features, window, **options)
    ours = reference.clone(conv_general_dilated=conv_general_dilated)
    with jax.enable_x64(True):
        x = jnp.asarray(_normal(2, 7, 9, channels))
        variables = reference.init(jax.random.key(0), x)
        variables = jax.tree.map(lambda p: jnp.asarray(_normal(*p.shape, seed=1)), variables)
        got, want = (_gradients(module, variables, x) for module in (ours, reference))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-11), got, want)


def _loss(convolve, padding="SAME", **options):
    options |= {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}

    def loss(x, kernel):
        return jnp.sum(jnp.square(convolve(x, kernel, (1, 1), padding, **options)))

    return loss


@pytest.mark.parametrize(
    ("convolve", "shape"),
    [(jax.lax.conv_general_dilated, "6,3,3,2"), (conv_general_dilated, "2,3,3,6")],
)
def test_patches_are_of_the_array_with_fewer_channels(convolve, shape):
    """XLA's CPU convolution copies patches of what comes first in its result's shape."""
    if jax.default_backend() != "cpu":
        pytest.skip("CPUs get a form of their own")
    x, kernel = jnp.zeros((2, 8, 8, 6)), jnp.zeros((3, 3, 6, 2))
    gradient = jax.jit(jax.grad(_loss(convolve), 1))
    program = gradient.lower(x, kernel).compile().as_text()
    found = re.findall(r"f32\[([\d,]+)\]\S* convolution\(.*size=8x8", program)
    assert found == [shape]


@pytest.mark.parametrize(("inputs", "outputs"), [(6, 2), (2, 6), (40, 40)])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_flops_are_those_of_lax(inputs, outputs, padding):
    """Zeros between packed pixels and products at the borders are none."""
    x, kernel = jnp.zeros((2, 8, 8, inputs)), jnp.zeros((3, 3, inputs, outputs))
    ours, reference = (
        count_flops(jax.grad(_loss(f, padding), (0, 1)), x, kernel)
        for f in (conv_general_dilated, jax.lax.conv_general_dilated)
    )
    assert ours == reference
    if padding == "SAME":
        assert ours == 3 * 2 * 9 * inputs * outputs * (2 * 8 * 8)


@pytest.mark.parametrize("pixels", [1, 2, 4])
def test_packed_pixels_are_a_convolution(pixels):
    with jax.enable_x64(True):
        x, kernel = jnp.asarray(_normal(2, 5, 9, 3)), jnp.asarray(_normal(3, 2, 3, 4, seed=1))
        padding = ((1, 1), (0, 0))
        layout = ("NHWC", "HWIO", "NHWC")
        want = jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=layout)
        got = packed_conv(x, kernel, padding, pixels)
        np.testing.assert_allclose(got, want, atol=1e-12)


def test_groups_of_pixels_fill_a_row():
    for width in range(1, 40):
        for channels in (1, 4, 10, 16, 20, 40, 64):
            assert width % pixels_of(channels, 10, 3, width) == 0
    assert pixels_of(1, 10, 3, 256) == 4 and pixels_of(10, 10, 3, 256) == 2
    assert pixels_of(10, 10, 1, 256) == pixels_of(64, 64, 3, 256) == 1
    assert pixels_of(4, 64, 3, 256) == 1 and pixels_of(4, 8, 3, 6) == 2


@pytest.mark.parametrize(
    "options",
    [{"preferred_element_type": jnp.float32}, {"batch_group_count": 2}, {"precision": "highest"}],
)
def test_no_option_is_lost(options):
    x = jnp.asarray(_normal(2, 8, 8, 6), jnp.bfloat16)
    kernel = jnp.asarray(_normal(3, 3, 6, 2), jnp.bfloat16)
    layout = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    got, want = (
        f(x, kernel, (1, 1), "SAME", **layout, **options)
        for f in (conv_general_dilated, jax.lax.conv_general_dilated)
    )
    assert (got.shape, got.dtype) == (want.shape, want.dtype)
    np.testing.assert_allclose(
        np.asarray(got, np.float32), np.asarray(want, np.float32), rtol=2e-2, atol=0.1
    )


@pytest.mark.parametrize("how", ["option", "default"])
def test_precision_holds_for_all_three_convolutions(how):
    x, kernel = jnp.zeros((2, 8, 8, 6)), jnp.zeros((3, 3, 6, 2))
    if how == "option":
        grad = jax.grad(_loss(conv_general_dilated, precision="highest"), (0, 1))
        text = jax.jit(grad).lower(x, kernel).as_text()
    else:
        # The backward pass is traced where the default is another one.
        with jax.default_matmul_precision("highest"):
            _, back = jax.vjp(_loss(conv_general_dilated), x, kernel)
        text = jax.jit(back).lower(jnp.ones(())).as_text()
    convolutions = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    assert len(convolutions) >= 2
    assert all(line.count("HIGHEST") == 2 for line in convolutions)


def test_bfloat16_rounds_like_lax():
    x = jnp.asarray(_normal(2, 16, 16, 12), jnp.bfloat16)
    kernel = jnp.asarray(_normal(3, 3, 12, 4), jnp.bfloat16)
    got, want = (
        jax.jit(jax.grad(_loss(f), (0, 1)))(x, kernel)
        for f in (conv_general_dilated, jax.lax.conv_general_dilated)
    )
    for a, b in zip(got, want, strict=True):
        assert a.dtype == jnp.bfloat16
        difference = np.asarray(a - b, np.float32)
        assert np.abs(difference).max() < 0.03 * np.abs(np.asarray(b, np.float32)).max()


def test_a_batch_may_lie_on_several_devices():
    """Under jit on a mesh, under pmap, and under shard_map, whose types say what varies."""
    devices = jax.devices()[:2]
    x, kernel = jnp.asarray(_normal(4, 8, 8, 6)), jnp.asarray(_normal(3, 3, 6, 2))
    x, kernel = x.astype(jnp.float32), kernel.astype(jnp.float32)
    loss = _loss(conv_general_dilated)
    want = jax.grad(_loss(jax.lax.conv_general_dilated), (0, 1))(x, kernel)
    mesh = jax.sharding.Mesh(np.array(devices), ("b",))
    split, whole = jax.sharding.PartitionSpec("b"), jax.sharding.PartitionSpec()
    shardings = tuple(jax.sharding.NamedSharding(mesh, spec) for spec in (split, whole))
    on_mesh = jax.jit(jax.grad(loss, (0, 1)), in_shardings=shardings)(x, kernel)
    mapped = jax.shard_map(
        jax.grad(loss, (0, 1)), mesh=mesh, in_specs=(split, whole), out_specs=(split, whole)
    )(x, kernel)
    each = jax.pmap(jax.grad(loss, (0, 1)), in_axes=(0, None), devices=devices)
    of_x, of_kernel = each(x.reshape(2, 2, 8, 8, 6), kernel)
    for got in (on_mesh, mapped, (of_x.reshape(x.shape), of_kernel.sum(0))):
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_other_platforms_get_plain_convolutions(platform):
    x, kernel = jnp.zeros((2, 8, 8, 6)), jnp.zeros((3, 3, 6, 2))
    traced = jax.jit(jax.grad(_loss(conv_general_dilated), (0, 1))).trace(x, kernel)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert text.count("stablehlo.convolution") == 3
    assert "packed_conv" not in text and "swapped_weight_gradient" not in text

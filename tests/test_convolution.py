"""Convolutions with a weight gradient of their own against lax's, in float64."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from boneage_jax.flops import count_flops
from boneage_jax.models.convolution import conv_general_dilated, packed_conv, pixels_of


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


def _loss(convolve):
    def loss(x, kernel):
        layout = ("NHWC", "HWIO", "NHWC")
        return jnp.sum(jnp.square(convolve(x, kernel, (1, 1), "SAME", dimension_numbers=layout)))

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
def test_zeros_between_the_pixels_are_no_flops(inputs, outputs):
    x, kernel = jnp.zeros((2, 8, 8, inputs)), jnp.zeros((3, 3, inputs, outputs))
    both = jax.grad(_loss(conv_general_dilated), (0, 1))
    assert count_flops(both, x, kernel) == 3 * 2 * 9 * inputs * outputs * (2 * 8 * 8)


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

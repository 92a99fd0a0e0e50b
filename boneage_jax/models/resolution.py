"""Halves and doubles the resolution of feature maps, with gradients that are fast on a CPU.

Functions, parameters and initial values are those of `flax.linen.max_pool` and
`flax.linen.ConvTranspose`; XLA's CPU backend is slow at two of their gradients. It scatters the
gradient of a maximum value by value, and it has no fast kernel for the weight gradient of a
transposed convolution: a step of `unet_10` on 8 images of 256 px took 1,620 ms with both, 1,000 ms
with the versions here, one of `unet` 128 and 90 ms (2 cores of an Intel Xeon).
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from boneage_jax.models.initializers import kernel_of, variance_scaling

Array = jax.Array

_LAYOUT = ("NHWC", "HWIO", "NHWC")


@jax.custom_vjp
def max_pool(x: Array) -> Array:
    """Takes the maximum of each 2 x 2 pixels: [B, H, W, C] -> [B, H/2, W/2, C], H and W even.

    The gradient goes to the first of equal values in reading order, as XLA's own does.
    """
    return nn.max_pool(x, window_shape=(2, 2), strides=(2, 2))


def _max_pool_forward(x: Array) -> tuple[Array, Array]:
    return max_pool(x), x


def _max_pool_backward(x: Array, gradient: Array) -> tuple[Array]:
    # TPUs have an operation for it that moves less memory than ours.
    of_input = jax.lax.platform_dependent(x, gradient, tpu=_scattered, default=_selected)
    return (of_input,)


def _scattered(x: Array, gradient: Array) -> Array:
    return jax.vjp(lambda x: nn.max_pool(x, (2, 2), strides=(2, 2)), x)[1](gradient)[0]


def _selected(x: Array, gradient: Array) -> Array:
    batch, height, width, channels = x.shape
    blocks = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    values = [blocks[:, :, row, :, column] for row in range(2) for column in range(2)]
    # Each is compared with those after it, none with the maximum: where XLA computes `x` again, and
    # rounds otherwise than for the maximum, no value would equal it and the gradient would be lost.
    free = jnp.ones(gradient.shape, bool)
    parts = []
    for place, value in enumerate(values):
        rest = values[place + 1 :]
        first = free & (value >= functools.reduce(jnp.maximum, rest)) if rest else free
        free &= ~first
        parts.append(jnp.where(first, gradient, 0))
    return _interleave(parts)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


class ConvTranspose(nn.Module):
    """Transposed convolution of stride 2 with bias and SAME padding, as `flax.linen.ConvTranspose`.

    Attributes:
      features: channels of the output.
      kernel_size: height and width of the kernel in pixels, at least 2.
      dtype: dtype of the computation; parameters are float32.
      portable: use plain convolutions on every backend; without gradients of our own.
    """

    features: int
    kernel_size: int
    dtype: Any = jnp.float32
    portable: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, H, W, C] to [B, 2H, 2W, features]."""
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = kernel_of(self, variance_scaling(1.0, "fan_in"), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        if self.portable:
            return (by_product if self.kernel_size == 2 else by_phases)(x, kernel) + bias
        return conv_transpose(x, kernel) + bias


@jax.custom_vjp
def conv_transpose(x: Array, kernel: Array) -> Array:
    """Computes `jax.lax.conv_transpose` with stride 2 and SAME padding.

    Args:
      x: [B, H, W, C].
      kernel: [k, k, C, F], k at least 2.

    Returns:
      [B, 2H, 2W, F].
    """
    if kernel.shape[0] > 2:
        return by_dilation(x, kernel)
    return jax.lax.platform_dependent(x, kernel, cpu=by_product, default=by_dilation)


def _conv_transpose_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return conv_transpose(x, kernel), (x, kernel)


def _conv_transpose_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = saved

    # Linear in each argument; a vjp would also compute, and count, the result again.
    def of_input(form: Callable[[Array, Array], Array]) -> Callable[..., Array]:
        def pull(x: Array, gradient: Array) -> Array:
            (found,) = jax.linear_transpose(lambda x: form(x, kernel), x)(gradient)
            return found

        return pull

    def of_kernel(form: Callable[[Array, Array], Array]) -> Callable[..., Array]:
        def pull(x: Array, gradient: Array) -> Array:
            (found,) = jax.linear_transpose(functools.partial(form, x), kernel)(gradient)
            return found

        return pull

    product = kernel.shape[0] == 2
    found = [
        jax.lax.platform_dependent(x, gradient, cpu=pull(form), default=pull(by_dilation))
        for pull, form in (
            (of_input, by_product if product else by_dilation),
            (of_kernel, by_product if product else by_phases),
        )
    ]
    return found[0], found[1]


conv_transpose.defvjp(_conv_transpose_forward, _conv_transpose_backward)


def by_dilation(x: Array, kernel: Array) -> Array:
    """Computes `conv_transpose` as XLA does: a convolution of inputs dilated with zeros."""
    return jax.lax.conv_transpose(x, kernel, (2, 2), "SAME", dimension_numbers=_LAYOUT)


def by_product(x: Array, kernel: Array) -> Array:
    """Computes `conv_transpose` with a 2 x 2 kernel as one product: no two taps write to one pixel.

    Written as a 1 x 1 convolution, since XLA transposes less for its weight gradient than for that
    of a matrix product: a step of `unet` took 62 instead of 65 ms.
    """
    channels, features = kernel.shape[2:]
    # With SAME padding the last tap meets the first pixel.
    taps = kernel[::-1, ::-1].transpose(2, 0, 1, 3).reshape(1, 1, channels, 4 * features)
    blocks = jax.lax.conv_general_dilated(x, taps, (1, 1), "VALID", dimension_numbers=_LAYOUT)
    return depth_to_space(blocks, 2)


def by_phases(x: Array, kernel: Array) -> Array:
    """Computes `conv_transpose` as one plain convolution for each pixel of the 2 x 2 output blocks.

    The number of products stays the same: an output in an even row reads other rows of the kernel
    than one in an odd row, and likewise for columns.
    """
    size = kernel.shape[0]
    before = -(-size // 2)  # zeros that SAME puts before the first of the dilated inputs
    phases = []
    for phase in range(2):
        taps = range((before - phase) % 2, size, 2)  # taps that meet an input, not a zero
        first, last = ((phase + tap - before) // 2 for tap in (taps[0], taps[-1]))
        phases.append((taps[0], (-first, last)))
    parts = [
        jax.lax.conv_general_dilated(
            x,
            kernel[row::2, column::2],
            (1, 1),
            (above, beside),
            dimension_numbers=_LAYOUT,
        )
        for row, above in phases
        for column, beside in phases
    ]
    return _interleave(parts)


def _interleave(parts: list[Array]) -> Array:
    """Interleaves four [B, H, W, C], one per pixel of 2 x 2 in reading order, to [B, 2H, 2W, C]."""
    batch, height, width, channels = parts[0].shape
    rows = [jnp.stack(parts[row : row + 2], axis=3) for row in (0, 2)]
    return jnp.stack(rows, axis=2).reshape(batch, 2 * height, 2 * width, channels)


def space_to_depth(x: Array, block: int) -> Array:
    """Maps [B, H, W, C] to [B, H/block, W/block, block * block * C]; identity for block 1."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // block, block, width // block, block, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height // block, width // block, block * block * channels)


def depth_to_space(x: Array, block: int) -> Array:
    """Inverts `space_to_depth`."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, block, block, channels // block**2)
    x = x.transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height * block, width * block, channels // block**2)

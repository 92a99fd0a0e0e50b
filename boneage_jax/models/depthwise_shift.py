"""Depthwise convolution as a sum of shifted products, which is fast on CPUs.

Forward and both gradients are jitted under their own names: equal shapes are traced and lowered
once, and `boneage_jax.models.flops` finds them by name: it does not count elementwise products.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from boneage_jax.models.depthwise_native import Padding


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def shift_conv(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """Convolves each channel with its own kernel; gradients are sums of shifted products too.

    Args:
      x: [B, H, W, C].
      kernel: [k, k, 1, C].
      stride: of both axes.
      padding: zeros before and after, of height and width.

    Returns:
      [B, H', W', C].
    """
    return depthwise_shift_forward(x, kernel, stride, padding)


def _shift_fwd(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return depthwise_shift_forward(x, kernel, stride, padding), (x, kernel)


def _shift_bwd(
    stride: int, padding: Padding, saved: tuple[jax.Array, jax.Array], grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    return (
        depthwise_shift_input_grad(grad, kernel, stride, padding, x.shape[1:3]),
        depthwise_shift_kernel_grad(x, grad, stride, padding, kernel.shape[0]),
    )


shift_conv.defvjp(_shift_fwd, _shift_bwd)


@functools.partial(jax.jit, static_argnums=(2, 3))
def depthwise_shift_forward(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding
) -> jax.Array:
    """Sums, over the k*k taps, a shifted (and strided) view of `x` times one weight."""
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    size = kernel.shape[0]
    high, wide = ((n - size) // stride + 1 for n in padded.shape[1:3])
    return _sum_of_taps(padded, kernel[:, :, 0], stride, high, wide)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def depthwise_shift_input_grad(
    grad: jax.Array, kernel: jax.Array, stride: int, padding: Padding, shape: tuple[int, int]
) -> jax.Array:
    """Convolves the gradient, dilated by the stride, with the flipped kernel."""
    size = kernel.shape[0]
    config = [(0, 0, 0)]
    for axis, ((low, _), length) in enumerate(zip(padding, shape, strict=True), start=1):
        spread = (grad.shape[axis] - 1) * stride + 1
        before = size - 1 - low
        config.append((before, length + size - 1 - before - spread, stride - 1))
    config.append((0, 0, 0))
    spread_grad = lax.pad(grad, jnp.zeros((), grad.dtype), config)
    return _sum_of_taps(spread_grad, kernel[::-1, ::-1, 0], 1, *shape)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def depthwise_shift_kernel_grad(
    x: jax.Array, grad: jax.Array, stride: int, padding: Padding, size: int
) -> jax.Array:
    """Sums for each tap, over batch and space, a shifted view of `x` times the gradient.

    A loop over blocks of rows adds each tap's product to its own [rows, W', C] accumulator, so the
    k*k products of a block are computed while it is in the cache. Taps one after the other, or all
    in one expression, become reductions that run 4 to 16 times slower (on 2 cores, float32:
    [8, 128, 128, 48] k=3 11 ms against 68 and 140; [8, 16, 16, 960] k=5 7 ms against 27 and 112).
    """
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    exact = jnp.promote_types(x.dtype, jnp.float32)  # bfloat16 products are added in float32
    batch, high, wide, channels = grad.shape
    rows = _rows_per_block(high, wide * channels) if stride == 1 else 1
    blocks = high // rows
    window = (1, (rows - 1) * stride + size, padded.shape[2], channels)
    tall, broad = (rows - 1) * stride + 1, (wide - 1) * stride + 1
    taps = [(i, j) for i in range(size) for j in range(size)]

    def block(step: jax.Array, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        image, row = step // blocks, step % blocks * rows
        view = lax.dynamic_slice(padded, (image, row * stride, 0, 0), window)[0].astype(exact)
        weight = lax.dynamic_slice(grad, (image, row, 0, 0), (1, rows, wide, channels))[0]
        return tuple(
            total + view[i : i + tall : stride, j : j + broad : stride] * weight
            for total, (i, j) in zip(sums, taps, strict=True)
        )

    zeros = tuple(jnp.zeros((rows, wide, channels), exact) for _ in taps)
    sums = lax.fori_loop(0, batch * blocks, block, zeros)
    kernel = jnp.stack(sums).sum((1, 2))  # [k * k, C]
    return kernel.reshape(size, size, 1, channels).astype(grad.dtype)


def _rows_per_block(high: int, row_size: int) -> int:
    """Returns the most rows that divide `high` and hold at most 32k values (level-2 cache)."""
    fits = [n for n in range(1, high + 1) if high % n == 0 and n * row_size <= 2**15]
    return max(fits, default=1)


def _sum_of_taps(
    padded: jax.Array, kernel: jax.Array, stride: int, high: int, wide: int
) -> jax.Array:
    """Sums the taps to [B, high, wide, C]; all fuse into one pass over memory."""
    batch, channels = padded.shape[0], padded.shape[-1]
    total = None
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            end = (batch, i + (high - 1) * stride + 1, j + (wide - 1) * stride + 1, channels)
            view = lax.slice(padded, (0, i, j, 0), end, (1, stride, stride, 1))
            total = view * kernel[i, j] if total is None else total + view * kernel[i, j]
    assert total is not None
    return total

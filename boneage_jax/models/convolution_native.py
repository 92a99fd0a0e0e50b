"""Convolutions of stride 1 by compiled code on a CPU, see native_code/convolution.cc.

XLA's CPU compiler copies a patch of pixels for each output and multiplies by few columns; U-Nets,
whose outer levels have few channels at many pixels, reached a third of the processor's speed.
"""

import functools

import jax

from boneage_jax.models.native import call

Padding = tuple[tuple[int, int], tuple[int, int]]

# Jitted under names by which `boneage_jax.models.flops` counts them, like those of depthwise.py.


@functools.partial(jax.jit, static_argnums=2)
def native_convolution(x: jax.Array, kernel: jax.Array, padding: Padding) -> jax.Array:
    """Convolves float32 [B, H, W, C] by [rows, columns, C, F].

    Args:
      x: [B, H, W, C].
      kernel: [rows, columns, C, F].
      padding: in pixels: ((top, bottom), (left, right)); negative numbers crop.

    Returns:
      [B, H', W', F].
    """
    high, wide = (
        max(0, length + sum(pads) - window + 1)
        for length, window, pads in zip(x.shape[1:3], kernel.shape[:2], padding, strict=True)
    )
    return _call("convolution", (x.shape[0], high, wide, kernel.shape[3]), x, kernel, padding)


@functools.partial(jax.jit, static_argnums=(2, 3))
def native_weight_gradient(
    x: jax.Array, gradient: jax.Array, padding: Padding, window: tuple[int, int]
) -> jax.Array:
    """Returns the gradient by the kernel, [rows, columns, C, F].

    Args:
      x: [B, H, W, C].
      gradient: by the result, [B, H', W', F].
      padding: of the convolution.
      window: rows and columns of the kernel.
    """
    shape = (*window, x.shape[3], gradient.shape[3])
    return _call("convolution_kernel_gradient", shape, x, gradient, padding)


def _call(
    name: str, shape: tuple[int, ...], first: jax.Array, second: jax.Array, padding: Padding
) -> jax.Array:
    (top, _), (left, _) = padding
    result: jax.Array = call(name, shape, first, second, top=top, left=left)
    return result

"""Depthwise convolution by compiled code on a CPU, see native_code/depthwise.cc.

XLA's loops over shifted products read and write memory for every tap; half of a train step of
EfficientNet-Lite0 was theirs.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax

from boneage_jax.models.batch_norm_native import CODES
from boneage_jax.models.native import call

Padding = tuple[tuple[int, int], tuple[int, int]]
Activation = Callable[[jax.Array], jax.Array]
KERNELS = (1, 3, 5, 7)  # sizes that there is code for


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def native_conv(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """Convolves float32 [B, H, W, C] by [k, k, 1, C], k one of `KERNELS`."""
    return depthwise_native_forward(x, kernel, stride, padding)


def _fwd(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return depthwise_native_forward(x, kernel, stride, padding), (x, kernel)


def _bwd(
    stride: int, padding: Padding, saved: tuple[jax.Array, jax.Array], grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    return (
        depthwise_native_input_grad(grad, kernel, stride, padding, x.shape[1:3]),
        depthwise_native_kernel_grad(x, grad, stride, padding, kernel.shape[0]),
    )


native_conv.defvjp(_fwd, _bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def native_fused(
    x: jax.Array,
    a: jax.Array,
    b: jax.Array,
    kernel: jax.Array,
    act: Activation,
    stride: int,
    padding: Padding,
) -> jax.Array:
    """Computes `native_conv(act(x * a + b), kernel)` and keeps `x` alone for the gradient.

    The activated values are never in memory but for a few rows, forward or backward: those of all
    layers are 290 MB of EfficientNet-B4's, 8 images of 256 px.
    """
    return depthwise_native_forward(x, kernel, stride, padding, act, a, b)


def _fused_fwd(
    x: jax.Array,
    a: jax.Array,
    b: jax.Array,
    kernel: jax.Array,
    act: Activation,
    stride: int,
    padding: Padding,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return native_fused(x, a, b, kernel, act, stride, padding), (x, a, b, kernel)


def _fused_bwd(
    act: Activation,
    stride: int,
    padding: Padding,
    saved: tuple[jax.Array, ...],
    grad: jax.Array,
) -> tuple[jax.Array, ...]:
    x, a, b, kernel = saved
    size = kernel.shape[0]
    kernel_grad = depthwise_native_kernel_grad(x, grad, stride, padding, size, act, a, b)
    by_x, sums = depthwise_native_input_grad(
        grad, kernel, stride, padding, x.shape[1:3], act, x, a, b
    )
    return by_x, sums[0], sums[1], kernel_grad


native_fused.defvjp(_fused_fwd, _fused_bwd)


# Jitted under names by which `boneage_jax.models.flops` counts them, like those of depthwise.py.


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def depthwise_native_forward(
    x: jax.Array,
    kernel: jax.Array,
    stride: int,
    padding: Padding,
    act: Activation | None = None,
    *scales: jax.Array,
) -> jax.Array:
    """Returns [B, H', W', C]; of act(x * a + b), if `scales` are a and b."""
    high, wide = (
        max(0, (length + sum(pads) - kernel.shape[0]) // stride + 1)
        for length, pads in zip(x.shape[1:3], padding, strict=True)
    )
    shape = (x.shape[0], high, wide, x.shape[3])
    return _call("forward", shape, (x, kernel, *scales), stride, padding, act)


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5))
def depthwise_native_input_grad(
    grad: jax.Array,
    kernel: jax.Array,
    stride: int,
    padding: Padding,
    shape: tuple[int, int],
    act: Activation | None = None,
    *normalised: jax.Array,
) -> Any:
    """Returns [B, H, W, C] of the gradient [B, H', W', C]; `shape` is (H, W).

    Of the convolution of act(x * a + b), if `normalised` are x, a and b: the gradient by x and
    [2, C] by a and by b.
    """
    whole = (grad.shape[0], *shape, grad.shape[3])
    shapes = [whole, (2, grad.shape[3])] if normalised else whole
    return _call("input_gradient", shapes, (grad, kernel, *normalised), stride, padding, act)


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5))
def depthwise_native_kernel_grad(
    x: jax.Array,
    grad: jax.Array,
    stride: int,
    padding: Padding,
    size: int,
    act: Activation | None = None,
    *scales: jax.Array,
) -> jax.Array:
    """Returns [size, size, 1, C]; for act(x * a + b), if `scales` are a and b."""
    shape = (size, size, 1, x.shape[3])
    return _call("kernel_gradient", shape, (x, grad, *scales), stride, padding, act)


def _call(
    name: str,
    shape: Any,
    arrays: tuple[jax.Array, ...],
    stride: int,
    padding: Padding,
    act: Activation | None = None,
) -> Any:
    (top, _), (left, _) = padding
    options = {"stride": stride, "top": top, "left": left}
    fused = "fused_" if len(arrays) > 2 else ""
    options |= {"activation": CODES[act]} if fused else {}
    return call(f"depthwise_{fused}{name}", shape, *arrays, **options)

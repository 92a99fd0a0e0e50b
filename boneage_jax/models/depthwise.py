"""Depthwise convolution, by the implementation that is fast where it runs.

XLA's CPU backend runs a depthwise `conv_general_dilated` 30-40 times slower than the same sum of
shifted products, and its gradients worse; on GPU and TPU the native convolution wins, since
shifted products read the input k*k times from memory.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from boneage_jax.errors import InputError

IMPLEMENTATIONS = ("auto", "lax", "shift")
Padding = tuple[tuple[int, int], tuple[int, int]]


def depthwise_conv(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: int = 1,
    padding: str | Sequence[tuple[int, int]] = "SAME",
    implementation: str = "auto",
) -> jax.Array:
    """Convolves each channel with its own kernel.

    Args:
      x: [B, H, W, C].
      kernel: [k, k, 1, C], of the dtype of `x`.
      stride: of both axes.
      padding: 'SAME' (TensorFlow's rule), 'VALID', or ((top, bottom), (left, right)) in pixels.
      implementation: 'lax', 'shift', or 'auto': shifted products on CPU, lax elsewhere. The
        choice is made while tracing, by the default backend: name one of the two when compiling
        for a machine other than this one.

    Returns:
      [B, H', W', C] of the dtype of `x`.

    Raises:
      InputError: unknown implementation.
    """
    if implementation not in IMPLEMENTATIONS:
        raise InputError(
            f"depthwise implementation {implementation!r} is unknown; choose one of "
            f"{', '.join(IMPLEMENTATIONS)}"
        )
    if implementation == "auto":
        implementation = implementation_for(jax.default_backend())
    if isinstance(padding, str):
        size, window = x.shape[1:3], kernel.shape[:2]
        padding = lax.padtype_to_pads(size, window, (stride, stride), padding)
    exact: Padding = tuple((int(low), int(high)) for low, high in padding)  # type: ignore[assignment]
    if implementation == "shift":
        return _shift_conv(x, kernel, stride, exact)
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        exact,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def implementation_for(backend: str) -> str:
    """What 'auto' stands for on a backend, cpu, gpu or tpu: shift | lax."""
    return "shift" if backend == "cpu" else "lax"


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _shift_conv(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
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


_shift_conv.defvjp(_shift_fwd, _shift_bwd)


# The three functions below are jitted under their own names: equal shapes are traced and lowered
# once, and `boneage_jax.flops` knows them by name, since it does not count bare products.


@functools.partial(jax.jit, static_argnums=(2, 3))
def depthwise_shift_forward(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding
) -> jax.Array:
    """Sum over the k*k taps of a shifted (and strided) view of `x` times one weight."""
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    size = kernel.shape[0]
    high, wide = ((n - size) // stride + 1 for n in padded.shape[1:3])
    return _sum_of_taps(padded, kernel[:, :, 0], stride, high, wide)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def depthwise_shift_input_grad(
    grad: jax.Array, kernel: jax.Array, stride: int, padding: Padding, shape: tuple[int, int]
) -> jax.Array:
    """The gradient spread out by the stride, under the flipped kernel."""
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
    """For each tap the sum over batch and space of a shifted view of `x` times the gradient.

    A loop over blocks of rows adds each tap's product to its own [rows, W', C] accumulator, so the
    k*k products of a block are formed while it lies in the cache. Taps one after the other, or
    all in one expression, become reductions that run 4 to 16 times slower (on 2 cores, float32:
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
    """Most rows that divide `high` and hold at most 32k values, well inside a level-2 cache."""
    fits = [n for n in range(1, high + 1) if high % n == 0 and n * row_size <= 2**15]
    return max(fits, default=1)


def _sum_of_taps(
    padded: jax.Array, kernel: jax.Array, stride: int, high: int, wide: int
) -> jax.Array:
    """[B, high, wide, C]; all taps fuse into one pass over memory."""
    batch, channels = padded.shape[0], padded.shape[-1]
    total = None
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            end = (batch, i + (high - 1) * stride + 1, j + (wide - 1) * stride + 1, channels)
            view = lax.slice(padded, (0, i, j, 0), end, (1, stride, stride, 1))
            total = view * kernel[i, j] if total is None else total + view * kernel[i, j]
    assert total is not None
    return total

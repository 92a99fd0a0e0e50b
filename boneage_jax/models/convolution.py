"""Convolutions with few channels, arranged for XLA's CPU backend.

The backend copies a patch of window x channels values for each pixel, and multiplies the patches by
a matrix with one column per output channel. Few columns leave most of a vector register empty, and
the copy costs more than the product. Hence:

- `packed_conv` computes neighbouring pixels of a row as channels of one pixel: more columns, and
  one copy for all of them, at the cost of multiplications by zero. At 256 px, 8 images, 10 to 10
  channels it took 8.7 instead of 16.0 ms, at 128 px and 4 to 8 channels 1.2 instead of 3.7 ms.
- The weight gradient convolves the inputs with the output gradient, a kernel as large as an image.
  If the gradient has fewer channels, the two swap places, so that less is copied. At 128 px, 16 to
  8 channels it took 5.1 instead of 8.6 ms, 40 to 20 channels 15 instead of 25 ms.

(2 cores of an Intel Xeon, XLA's flags as `boneage_jax/runtime/xla_flags.py` sets them;
`benchmarks/results/speed/*_convolutions.csv`.) Train steps of one CPU device run compiled code
instead, where there is a compiler (convolution_native.py). Other backends get lax's convolutions.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from boneage_jax.models.convolution_native import (
    Padding,
    native_convolution,
    native_weight_gradient,
)

Array = jax.Array

_NHWC = ("NHWC", "HWIO", "NHWC")


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    native: bool = False,
    **options: Any,
) -> Array:
    """Replaces `jax.lax.conv_general_dilated` in `flax.linen.Conv(conv_general_dilated=...)`.

    The methods of this file apply to [B, H, W, C] in and out, without strides, dilations, groups
    and options other than `precision`; they have no forward-mode derivative. Everything else goes
    to lax. With `native`, compiled code computes what the methods apply to: float32, for train
    steps where `boneage_jax.models.native` is enabled.
    """
    precision = options.pop("precision", None)
    ones = (*window_strides, *(lhs_dilation or ()), *(rhs_dilation or ()), feature_group_count)
    plain = lhs.ndim == 4 and set(ones) == {1} and not any(v is not None for v in options.values())
    if plain and _is_nhwc(lhs, rhs, dimension_numbers):
        if isinstance(padding, str):
            size, window = lhs.shape[1:3], rhs.shape[:2]
            padding = jax.lax.padtype_to_pads(size, window, (1, 1), padding)
        rows, columns = ((int(low), int(high)) for low, high in padding)
        # For the whole layer: the backward pass may run under another default.
        precision = precision or jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
        return _convolve(lhs, rhs, (rows, columns), precision, native)
    return jax.lax.conv_general_dilated(
        lhs,
        rhs,
        window_strides,
        padding,
        lhs_dilation,
        rhs_dilation,
        dimension_numbers,
        feature_group_count,
        precision=precision,
        **options,
    )


def _is_nhwc(lhs: Array, rhs: Array, dimension_numbers: Any) -> bool:
    usual = jax.lax.conv_dimension_numbers(lhs.shape, rhs.shape, _NHWC)
    return jax.lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers) == usual


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _convolve(x: Array, kernel: Array, padding: Padding, precision: Any, native: bool) -> Array:
    if native:
        return native_convolution(x, kernel, padding)
    return _on_cpu(_packed, _plain, padding, precision)(x, kernel)


def _forward(
    x: Array, kernel: Array, padding: Padding, precision: Any, native: bool
) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(x, kernel, padding, precision, native), (x, kernel)


def _backward(
    padding: Padding,
    precision: Any,
    native: bool,
    saved: tuple[Array, Array],
    gradient: Array,
) -> tuple[Array, Array]:
    x, kernel = saved
    # The gradient of the inputs is a convolution with the flipped kernel.
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    back = _opposite(kernel.shape[:2], padding)
    if native:
        of_kernel = native_weight_gradient(x, gradient, padding, kernel.shape[:2])
        return native_convolution(gradient, turned, back), of_kernel
    of_input = _on_cpu(_packed, _plain, back, precision)(gradient, turned)
    wide = kernel.shape[2] > kernel.shape[3]
    ours = swapped_weight_gradient if wide else _weight_gradient
    of_kernel = _on_cpu(ours, _weight_gradient, padding, precision)(x, gradient)
    return _summed(of_input, x), _summed(of_kernel, kernel)


_convolve.defvjp(_forward, _backward)


# Jitted so that boneage_jax/models/flops.py can count its FLOPs by name.
@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def packed_conv(
    x: Array, kernel: Array, padding: Padding, pixels: int, precision: Any = None
) -> Array:
    """Computes a convolution of stride 1 with several pixels of a row packed into one.

    An infinity in `x` also makes pixels of its group non-finite whose window does not contain it:
    zero times infinity is NaN.

    Args:
      x: [B, H, W, C].
      kernel: [rows, columns, C, F].
      padding: in pixels: ((top, bottom), (left, right)).
      pixels: pixels per group; must divide the columns of the result.
      precision: as in lax.

    Returns:
      [B, H', W', F].
    """
    columns, features = kernel.shape[1], kernel.shape[3]
    # Pixel i of a group reads the window that starts i columns further right.
    windows = jnp.concatenate(
        [jnp.pad(kernel, ((0, 0), (i, pixels - 1 - i), (0, 0), (0, 0))) for i in range(pixels)],
        axis=-1,
    )
    groups = jax.lax.conv_general_dilated(
        x, windows, (1, pixels), padding, dimension_numbers=_NHWC, precision=precision
    )
    width = x.shape[2] + sum(padding[1]) - columns + 1
    return groups.reshape(*groups.shape[:2], width, features)


def pixels_of(inputs: int, outputs: int, columns: int, width: int) -> int:
    """Returns how many pixels of a row `packed_conv` should pack; 1 is a plain convolution.

    Args:
      inputs, outputs: numbers of channels.
      columns: columns of the kernel.
      width: columns of the result.
    """
    # If there are many columns already, more of them cost more than the copy.
    few = 2 if inputs + outputs <= 40 and width % 2 == 0 else 1
    few = 4 if inputs <= 4 and outputs <= 16 and width % 4 == 0 else few
    return few if columns > 1 else 1


@functools.partial(jax.jit, static_argnums=(2, 3))  # for its name, as above
def swapped_weight_gradient(
    x: Array, gradient: Array, padding: Padding, precision: Any = None
) -> Array:
    """Computes the weight gradient of a stride-1 convolution, by convolving the gradient with `x`.

    Args:
      x: [B, H, W, C].
      gradient: gradient of the result, [B, H', W', F].
      padding: padding of the convolution in pixels: ((top, bottom), (left, right)).
      precision: as in lax.

    Returns:
      [rows, columns, C, F].
    """
    window = [x.shape[axis] + sum(padding[axis - 1]) - gradient.shape[axis] + 1 for axis in (1, 2)]
    # Tap k reads x[o + k - low] for output o, so input i meets the gradient at i - k + low.
    backwards = _weight_gradient(gradient, x, _opposite(window, padding), precision)
    return backwards[::-1, ::-1].swapaxes(2, 3)


def _weight_gradient(x: Array, gradient: Array, padding: Padding, precision: Any) -> Array:
    """Computes the weight gradient as lax does."""
    return jax.lax.conv_general_dilated(
        x,
        gradient,
        (1, 1),
        padding,
        dimension_numbers=("CHWN", "IHWO", "HWNC"),
        precision=precision,
    )


def _packed(x: Array, kernel: Array, padding: Padding, precision: Any) -> Array:
    _, columns, inputs, outputs = kernel.shape
    width = x.shape[2] + sum(padding[1]) - columns + 1
    pixels = pixels_of(inputs, outputs, columns, width)
    if pixels == 1:
        return _plain(x, kernel, padding, precision)
    return packed_conv(x, kernel, padding, pixels, precision)


def _plain(x: Array, kernel: Array, padding: Padding, precision: Any) -> Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), padding, dimension_numbers=_NHWC, precision=precision
    )


def _on_cpu(
    ours: Callable[..., Array], other: Callable[..., Array], padding: Padding, precision: Any
) -> Callable[[Array, Array], Array]:
    """Returns a function that runs `ours` if compiled for a CPU, else `other`."""

    def choose(a: Array, b: Array) -> Array:
        return jax.lax.platform_dependent(
            a,
            b,
            cpu=lambda a, b: ours(a, b, padding, precision),
            default=lambda a, b: other(a, b, padding, precision),
        )

    return choose


def _summed(gradient: Array, like: Array) -> Array:
    """Sums over the device axes of a `jax.shard_map` over which `like` does not vary."""
    missing = _varying(gradient) - _varying(like)
    return jax.lax.psum(gradient, tuple(missing)) if missing else gradient


def _varying(a: Array) -> frozenset[str]:
    kind: Any = jax.typeof(a)
    if hasattr(kind, "manual_axis_type"):  # JAX 0.10
        return frozenset(kind.manual_axis_type.varying)
    return frozenset(getattr(kind, "vma", ()))


def _opposite(window: Sequence[int], padding: Padding) -> Padding:
    """Returns the padding of the convolution with the flipped kernel, from result to inputs."""
    rows, columns = (
        (size - 1 - low, size - 1 - high) for size, (low, high) in zip(window, padding, strict=True)
    )
    return rows, columns

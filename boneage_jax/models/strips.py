"""Images cut into horizontal strips that lie in the batch as if they were images, for TPUs.

A TPU keeps arrays in tiles whose last axis holds a multiple of 128 values. The first blocks of an
EfficientNet have too few channels for that axis, so XLA's TPU compiler puts the batch there: with
64 images per chip every second value that it moves to and from main memory is padding. Five strips
of 64 images fill five sixths. All but the convolutions over neighbours compute the same on strips;
those add what the rows above and below a strip contribute to its border.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
Padding = tuple[tuple[int, int], tuple[int, int]]
Conv = Callable[[Array, Padding], Array]

_LANES = 128  # https://docs.cloud.google.com/tpu/docs/performance-guide
_FEWEST = 32  # below, other axes than the batch may fill the lanes better; 64 is what was compiled


def strips_for(batch: int, rows: int) -> int:
    """Returns into how many strips images are best cut, 1 for not at all.

    Args:
      batch: images per device, 0 if unknown.
      rows: height of the features, which is halved once while they are cut: strips have an even
        number of rows.
    """
    if batch < _FEWEST:
        return 1
    fits = [n for n in range(2, 9) if rows % (2 * n) == 0 and rows // n >= 16]

    def cost(strips: int) -> float:
        padded = -(-batch * strips // _LANES) * _LANES / strips
        # Two rows of each strip are moved once more; after the halving they are twice the share.
        return padded * (1 + 4 * (strips - 1) / rows)

    return min((1, *fits), key=cost)


def cut_windows(x: Array, strips: int, kernel: int, stride: int, pads: tuple[int, int]) -> Array:
    """Cuts [B, H, W, C] into strips with the rows that a convolution of each reads around it.

    Args:
      pads: rows of zeros above and below the image.

    Returns:
      [B * strips, H'', W, C], the strips of an image one after the other; convolve without padding
      of the rows.
    """
    x = jnp.pad(x, ((0, 0), pads, (0, 0), (0, 0)))
    step = ((x.shape[1] - kernel) // stride + 1) // strips * stride
    high = step - stride + kernel
    parts = [x[:, n * step : n * step + high] for n in range(strips)]
    return jnp.stack(parts, 1).reshape(-1, high, *x.shape[2:])


def join(x: Array, strips: int) -> Array:
    """Joins the strips [B * strips, H, W, C] to images [B, H * strips, W, C]."""
    if strips == 1:
        return x
    # Without the barrier the arrays that change their order in memory would be float32.
    return lax.optimization_barrier(x.reshape(-1, strips * x.shape[1], *x.shape[2:]))


def mean_of_strips(x: Array, strips: int) -> Array:
    """Returns the means [B, C] of images from those of their strips [B * strips, C]."""
    return x if strips == 1 else x.reshape(-1, strips, x.shape[-1]).mean(1)


def to_strips(x: Array, strips: int) -> Array:
    """Repeats the values [B, ...] of images for each of their strips."""
    return x if strips == 1 else jnp.repeat(x, strips, 0)


def borders(x: Array, kernel: int, stride: int, pads: tuple[int, int]) -> tuple[Array, Array]:
    """Returns the last and the first rows of each strip that a convolution of its neighbours reads.

    Args:
      x: [B * strips, H, W, C], H a multiple of `stride`.
      kernel, stride, pads: rows of the convolution of whole images, and of zeros around them.

    Returns:
      [B * strips, H', W, C] for the strip below and for the strip above; H' can be 0.
    """
    last, first = _border_rows(kernel, stride, pads)
    return x[:, x.shape[1] - last :], x[:, :first]


def _border_rows(kernel: int, stride: int, pads: tuple[int, int]) -> tuple[int, int]:
    """Returns how many rows a strip reads of the one above and of the one below."""
    return pads[0], max(0, kernel - stride - pads[0])


def conv_strips(
    conv: Conv,
    make: Callable[[Array], Array],
    x: Array,
    edges: tuple[Array, Array],
    *,
    kernel: int,
    stride: int,
    padding: Padding,
    strips: int,
) -> Array:
    """Convolves make(x) as if the strips were joined.

    Args:
      conv: convolution of [N, H, W, C], given the padding of both axes.
      make: elementwise function of the values.
      x: [B * strips, H, W, C], H a multiple of `stride`.
      edges: `borders` of `x`. A caller that can compute them from narrower arrays spares the TPU
        another pass over `x`.
      kernel, stride, padding: those of the convolution of whole images; its rows are H * strips /
        stride.

    Returns:
      [B * strips, H / stride, W', C']. Rows at borders are two rounded results, added.

    Raises:
      ValueError: edges of another height.
    """
    above, below = edges
    top, bottom = _border_rows(kernel, stride, padding[0])
    if (above.shape[1], below.shape[1]) != (top, bottom):
        raise ValueError(f"edges {above.shape}, {below.shape} must have {top}, {bottom} rows")
    high, wide, rows = x.shape[1], padding[1], x.shape[1] // stride
    out = conv(make(x), ((top, bottom), wide))
    parts, places = [], []
    if top:  # the rows above reach the first of the result
        count = -(-top // stride)
        pads = (0, (count - 1) * stride + kernel - top)
        parts.append(conv(_from(make, above, strips, above=True), (pads, wide)))
        places.append((0, rows - count))
    if bottom:
        first = -(-(high + 1 + top - kernel) // stride)
        pads = (high - (first * stride - top), 0)
        parts.append(conv(_from(make, below, strips, above=False), (pads, wide)))
        places.append((first, 0))
    # The gradient reads the same rows for each part and for the kernel; it cuts them out once.
    for part, place in zip(lax.optimization_barrier(tuple(parts)), places, strict=True):
        out += jnp.pad(part, ((0, 0), place, (0, 0), (0, 0)))
    return out


def _from(make: Callable[[Array], Array], rows: Array, strips: int, *, above: bool) -> Array:
    """Returns for each strip rows of the strip above or below, zeros where there is none."""
    shape = rows.shape
    rows = rows.reshape(-1, strips, *shape[1:])
    rows = make(rows[:, :-1] if above else rows[:, 1:])
    pads = [(0, 0)] * rows.ndim
    pads[1] = (1, 0) if above else (0, 1)
    return jnp.pad(rows, pads).reshape(shape)

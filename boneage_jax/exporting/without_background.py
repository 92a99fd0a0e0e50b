"""Removes the background of radiographs inside a graph, by the probabilities of a U-Net.

What `boneage_jax.data.masks` does to a file with mask_mode=multiply is done here to its square: the
largest part is kept and its holes are filled, and what is not hand becomes black.
"""

import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from boneage_jax.data.masks import NO_HAND
from boneage_jax.exporting.boxed_picture import whole, without_margins

# Mask pixels per pixel of the square and axis: edges are partly dark, as after shrinking.
_FINER = 2


def resized(images: jax.Array, side: int) -> jax.Array:
    """Resizes uint8 [B, S, S, 1] to [B, side, side, 1] as `data.files.resize` does."""
    if images.shape[1] == side:
        return images
    pixels = _resized(images[..., 0].astype(jnp.float32), side)
    return jnp.expand_dims(pixels.astype(jnp.uint8), 3)


def without_background(images: jax.Array, p_hand: jax.Array) -> jax.Array:
    """Makes black what is not hand; an image without a hand keeps its background.

    Args:
      images: uint8 [B, S, S, 1].
      p_hand: uint8 [B, M, M], of a U-Net, times 255.

    Returns:
      uint8 [B, S, S, 1].
    """
    pixels = images[..., 0].astype(jnp.float32)
    side, p_hand = pixels.shape[1], p_hand.astype(jnp.float32)
    mask = p_hand > 127
    clean = filled(largest_part(mask))
    p_hand = jnp.where(clean, jnp.where(mask, p_hand, 255.0), jnp.where(mask, 0.0, p_hand))
    fine = (_resized(p_hand, _FINER * side) > 127).astype(jnp.float32)
    part = fine.reshape(-1, side, _FINER, side, _FINER).mean((2, 4))
    inner = without_margins(whole(pixels))
    area = mask.astype(jnp.float32).sum((1, 2)) / mask.shape[1] ** 2
    found = area * side**2 >= NO_HAND * inner.height * inner.width
    part = jnp.where(jnp.expand_dims(found, (1, 2)), part, 1.0)
    return jnp.expand_dims(jnp.round(part * pixels).astype(jnp.uint8), 3)


def largest_part(mask: jax.Array) -> jax.Array:
    """Keeps the largest connected part (8 neighbours) of masks, bool [B, S, S]."""
    side = mask.shape[1]
    count = side * side
    numbers = jnp.arange(1, count + 1, dtype=jnp.int32).reshape(side, side)
    labels = _spread(jnp.where(mask, numbers, 0), mask, corners=True).reshape(-1, count)
    # A part has the number of its last pixel. Its size is the count of that number.
    order = jnp.sort(labels, axis=1)
    index = jnp.arange(count, dtype=jnp.int32)
    starts = jnp.concatenate([order[:, :1] * 0 - 1, order[:, :-1]], axis=1) != order
    size = index - _running_max(jnp.where(starts, index, 0), 1, False)
    size = jnp.where(order > 0, size, -1)
    best = jnp.where(size == size.max(1, keepdims=True), order, 0).max(1)
    return mask & (labels.reshape(-1, side, side) == jnp.expand_dims(best, (1, 2)))


def filled(mask: jax.Array) -> jax.Array:
    """Fills background that is enclosed (4 neighbours), bool [B, S, S]."""
    side = mask.shape[1]
    border = np.zeros((side, side), bool)
    border[[0, -1]] = border[:, [0, -1]] = True
    outside = jnp.where(border & ~mask, 1, 0).astype(jnp.int32)
    return _spread(outside, ~mask, corners=False) == 0


def _spread(labels: jax.Array, free: jax.Array, corners: bool) -> jax.Array:
    """Gives connected pixels the largest label among them, int32 [B, S, S].

    Each round carries labels along all rows and columns as far as they are free, both ways: a hand
    takes as many rounds as it has bends.

    Args:
      labels: int32 [B, S, S], 0 to S * S, 0 where not free.
      free: bool [B, S, S].
      corners: whether pixels that share a corner are connected.
    """
    walls = {
        (axis, reverse): jax.lax.cumsum(jnp.where(free, 0, 1).astype(jnp.int32), axis, reverse)
        for axis in (1, 2)
        for reverse in (False, True)
    }
    step = free.shape[1] ** 2 + 1

    def carried(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        before = labels = state[0]
        if corners:
            labels = jnp.where(free, _largest_near(labels), 0)
        for (axis, reverse), count in walls.items():
            # A wall raises all that comes after it above all that came before.
            base = count * step
            labels = _running_max(labels + base, axis, reverse) - base
            labels = jnp.where(free, labels, 0)
        return labels, (labels != before).any()

    return jax.lax.while_loop(lambda state: state[1], carried, (labels, labels.max() >= 0))[0]


def _running_max(x: jax.Array, axis: int, reverse: bool) -> jax.Array:
    """Returns the largest of the values up to each, at least 0, by steps that double.

    `jax.lax.cummax` becomes a pooling over whole rows in ONNX, of floats alone.
    """
    length, step = x.shape[axis], 1
    while step < length:
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, step) if reverse else (step, 0)
        start = step if reverse else 0
        moved = jax.lax.slice_in_dim(jnp.pad(x, widths), start, start + length, axis=axis)
        x, step = jnp.maximum(x, moved), 2 * step
    return x


def _largest_near(labels: jax.Array) -> jax.Array:
    """Returns the largest of the 3 x 3 pixels around each."""
    for axis in (1, 2):
        length = labels.shape[axis]
        widths = [(1, 1) if n == axis else (0, 0) for n in range(3)]
        padded = jnp.pad(labels, widths)
        parts = [jax.lax.slice_in_dim(padded, at, at + length, axis=axis) for at in range(3)]
        labels = jnp.maximum(jnp.maximum(parts[0], parts[1]), parts[2])
    return labels


def _resized(pixels: jax.Array, side: int) -> jax.Array:
    matrix = _resizing(pixels.shape[1], side)
    rows = jnp.matmul(matrix, pixels, precision="highest")
    return jnp.round(jnp.matmul(rows, matrix.T, precision="highest"))


@functools.cache
def _resizing(side: int, to: int) -> np.ndarray:
    """Returns the matrix [to, side] of OpenCV's averaging of areas, or bilinear enlarging."""
    method = cv2.INTER_AREA if to < side else cv2.INTER_LINEAR
    return cv2.resize(np.eye(side, dtype=np.float32), (side, to), interpolation=method)

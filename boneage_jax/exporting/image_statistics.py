"""`boneage_jax.inference.calibration.image_statistics` in JAX, for graphs that judge images.

OpenCV's resizing and pyramids are linear in each axis, so each step is a product with a matrix,
and the matrices are read off OpenCV itself: no rule of its borders is written down twice.
"""

import functools
import itertools

import cv2
import jax
import jax.numpy as jnp
import numpy as np

SIDES = (128, 64, 32, 16, 8)  # of the levels, pixels


def image_statistics(images: jax.Array) -> jax.Array:
    """Measures images as `calibration.image_statistics` does; equal to about 1e-4.

    Args:
      images: uint8 [B, S, S, 1].

    Returns:
      float32 [B, 10].
    """
    x = _both_axes(images[..., 0].astype(jnp.float32), _shrinking(images.shape[1]))
    x = x - _mean(x)[:, None, None]
    x = x / jnp.maximum(_deviation(x), 1.0)[:, None, None]
    numbers = []
    for side, smaller_side in itertools.pairwise(SIDES):
        smaller = _both_axes(x, _down(side))
        band = x - _both_axes(smaller, _up(smaller_side))
        spread = _deviation(band) + 1e-3
        numbers += [jnp.log(spread), jnp.log((_mean(jnp.abs(band)) + 1e-4) / spread)]
        x = smaller
    spread = _deviation(x) + 1e-3
    numbers += [jnp.log(spread), _mean(jnp.abs(x)) / spread]
    return jnp.concatenate([number[:, None] for number in numbers], axis=-1)


def distance(images: jax.Array, mean: np.ndarray, precision: np.ndarray) -> jax.Array:
    """Returns the Mahalanobis distance of the statistics of images, float32 [B].

    Args:
      images: uint8 [B, S, S, 1].
      mean, precision: see `boneage_jax.inference.calibration.Calibration`.
    """
    # |L^T a| with precision = L L^T: a sum of squares, where a^T precision a cancels.
    root = np.linalg.cholesky(precision).astype(np.float32)
    away = image_statistics(images) - mean.astype(np.float32)
    turned = jnp.matmul(away, root, precision="highest")
    return jnp.sqrt(jnp.square(turned).sum(-1))


def _mean(x: jax.Array) -> jax.Array:
    return x.mean((1, 2))


def _deviation(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.square(x - _mean(x)[:, None, None]).mean((1, 2)))


def _both_axes(x: jax.Array, matrix: np.ndarray) -> jax.Array:
    rows = jnp.matmul(matrix, x, precision="highest")
    return jnp.matmul(rows, matrix.T, precision="highest")


@functools.cache
def _shrinking(side: int) -> np.ndarray:
    """Returns the matrix [128, side] of OpenCV's INTER_AREA."""
    eye = np.eye(side, dtype=np.float32)
    return cv2.resize(eye, (side, SIDES[0]), interpolation=cv2.INTER_AREA)


@functools.cache
def _down(side: int) -> np.ndarray:
    """Returns the matrix [side / 2, side] of `cv2.pyrDown`."""
    return np.stack([cv2.pyrDown(stripe)[:, 0] for stripe in _stripes(side)], axis=1)


@functools.cache
def _up(side: int) -> np.ndarray:
    """Returns the matrix [2 side, side] of `cv2.pyrUp`."""
    return np.stack([cv2.pyrUp(stripe)[:, 0] for stripe in _stripes(side)], axis=1)


def _stripes(side: int) -> list[np.ndarray]:
    """Returns pictures [side, side] that are 1 in one row: their columns show one axis alone."""
    return [np.repeat(row[:, None], side, axis=1) for row in np.eye(side, dtype=np.float32)]

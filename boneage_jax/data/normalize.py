"""Normalises image batches, on the device and inside the jitted step."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp

from boneage_jax.errors import InputError

METHODS = ("zscore", "percentile", "equalize", "none")

_SAMPLE = 4096  # pixels from which a quantile is estimated
_KNOTS = 32  # segments of an equalising tone curve


def normalize(images: jax.Array, method: str) -> jax.Array:
    """Normalises each image to a common scale, independent of its exposure.

    'zscore' and 'percentile' give the same result for x and a x + b with a > 0 (as long as the
    contrast is above 1/1000 of the full range), and 0 for a constant image.

    Args:
      images: float [B, H, W, 1] in [0, 1].
      method: 'zscore': mean 0 and standard deviation 1. 'percentile': the 1st and 99th percentile
        become -1 and 1; they are estimated from a regular grid of at most 4096 pixels, since
        sorting all would cost more than the rest of the input together. 'equalize': each grey level
        becomes its rank among these pixels, linear between 33 quantiles and scaled to mean 0 and
        standard deviation 1, which gives the same result for any increasing tone curve. 'none':
        unchanged.

    Returns:
      float32 [B, H, W, 1].

    Raises:
      InputError: unknown method.
    """
    x = images.astype(jnp.float32)
    if method == "none":
        return x
    if method == "zscore":
        centre = x.mean(axis=(1, 2, 3), keepdims=True)
        x = x - centre
        deviation = jnp.sqrt(jnp.square(x).mean(axis=(1, 2, 3), keepdims=True))
        return x / jnp.maximum(deviation, 1e-3)
    if method == "percentile":
        low, high = _quantiles(x, [0.01, 0.99])
        return (x - (low + high) / 2) / jnp.maximum((high - low) / 2, 1e-3)
    if method == "equalize":
        knots = _quantiles(x, [rank / _KNOTS for rank in range(_KNOTS + 1)])
        pieces = [
            jnp.clip((x - low) / jnp.maximum(high - low, 1e-4), 0.0, 1.0)
            for low, high in itertools.pairwise(knots)
        ]
        rank = functools.reduce(jnp.add, pieces)
        return (rank / _KNOTS - 0.5) * math.sqrt(12.0)
    raise InputError(f"config.normalize={method!r} must be zscore, percentile, equalize or none")


def _quantiles(x: jax.Array, levels: list[float]) -> list[jax.Array]:
    """Returns quantiles of images [B, H, W, 1], each [B, 1, 1, 1], from a regular pixel grid."""
    batch, height, width, _ = x.shape
    stride = math.ceil(math.sqrt(height * width / _SAMPLE))
    sample = x[:, stride // 2 :: stride, stride // 2 :: stride].reshape(batch, -1)
    return list(jnp.quantile(sample, jnp.array(levels), axis=1)[..., None, None, None])

"""Blur, noise and JPEG compression of image batches, drawn for each image.

Other detectors, exposures and archives change the sharpness and the grain of a radiograph and
nothing else. A network that never met them reads them as age (docs/robustness.md).
"""

import jax
import jax.numpy as jnp
import numpy as np

_SOFTENING = (1.0, 4.0, 6.0, 4.0, 1.0)  # weights of five pixels in a row: a Gaussian of 1 pixel
_BLOCK = 8  # pixels per side of a block of JPEG
_BEST_QUALITY = 80.0  # above it compression does not show

# How coarsely each frequency of a block is stored at quality 50: ITU-T T.81, table K.1.
_COARSENESS = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ],
    np.float32,
)


def blurred(x: jax.Array, part: jax.Array) -> jax.Array:
    """Replaces a part of each image by itself smoothed with a Gaussian of 1 pixel.

    Args:
      x: float32 [B, H, W, 1].
      part: in 0..1, [B, 1, 1, 1].
    """
    smooth = x
    for axis in (1, 2):
        widths = [(2, 2) if place == axis else (0, 0) for place in range(x.ndim)]
        padded, size = jnp.pad(smooth, widths, mode="edge"), x.shape[axis]
        parts = [
            weight * jax.lax.slice_in_dim(padded, at, at + size, axis=axis)
            for at, weight in enumerate(_SOFTENING)
        ]
        smooth = jnp.stack(parts).sum(0) / sum(_SOFTENING)
    return x + part * (smooth - x)


def noisy(x: jax.Array, keys: jax.Array, deviation: jax.Array) -> jax.Array:
    """Adds normal noise to each pixel and clips to [0, 1].

    Args:
      x: float32 [B, H, W, 1] in [0, 1].
      keys: typed random keys [B].
      deviation: standard deviation in units of the full range, [B, 1, 1, 1].
    """
    pixels = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys)
    return jnp.clip(x + deviation * pixels, 0.0, 1.0)


def compressed(x: jax.Array, quality: jax.Array) -> jax.Array:
    """Returns each image as a baseline JPEG of its luminance would give it back.

    The cosine transform of blocks of 8 x 8 pixels is rounded to multiples of the table of ITU-T
    T.81, scaled by the quality as libjpeg does. Costs 260 FLOPs per pixel.

    Args:
      x: float32 [B, H, W, 1] in [0, 1].
      quality: of libjpeg, 1 to 100, [B].

    Returns:
      float32 [B, H, W, 1] in [0, 1], in whole grey levels.
    """
    count, height, width, _ = x.shape
    rows, columns = -height % _BLOCK, -width % _BLOCK
    padded = jnp.pad(x[..., 0], ((0, 0), (0, rows), (0, columns)), mode="edge")
    down, across = padded.shape[1] // _BLOCK, padded.shape[2] // _BLOCK
    blocks = padded.reshape(count, down, _BLOCK, across, _BLOCK).swapaxes(2, 3)
    levels = jnp.rint(blocks.reshape(count, down * across, _BLOCK**2) * 255.0) - 128.0
    transform = _cosines()
    percent = jnp.where(quality < 50, 5000.0 / quality, 200.0 - 2.0 * quality)[:, None]
    steps = jnp.floor((_COARSENESS.ravel() * percent + 50.0) / 100.0).clip(1.0, 255.0)[:, None]
    # Halves go away from zero; means of a block are often exactly half, but for rounding.
    waves = levels @ transform.T / steps
    kept = jnp.sign(waves) * jnp.floor(jnp.abs(waves) + 0.5001) * steps
    levels = jnp.rint(kept @ transform + 128.0).clip(0.0, 255.0)
    blocks = levels.reshape(count, down, across, _BLOCK, _BLOCK).swapaxes(2, 3)
    padded = blocks.reshape(padded.shape) / 255.0
    return padded[:, :height, :width, None]


def drawn_quality(uniform: jax.Array, lowest: float) -> jax.Array:
    """Returns a JPEG quality from `lowest` to 80 for each number in [0, 1), [B]."""
    return lowest + (_BEST_QUALITY - lowest) * uniform


def _cosines() -> np.ndarray:
    """Returns the orthonormal cosine transform of a block, float32 [64 frequencies, 64 pixels]."""
    place = np.arange(_BLOCK)
    waves = np.cos(np.pi * np.outer(place, 2 * place + 1) / (2 * _BLOCK)) * np.sqrt(2 / _BLOCK)
    waves[0] = np.sqrt(1 / _BLOCK)
    both: np.ndarray = np.kron(waves, waves)
    return both.astype(np.float32)

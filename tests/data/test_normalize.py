"""Normalisation of images: closed forms, and what must not change the result."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats

from boneage_jax.data.normalize import normalize
from boneage_jax.errors import InputError


def smooth_images(count: int, height: int = 48, width: int = 48) -> np.ndarray:
    """Blurred noise, uint8 [count, height, width, 1]."""
    noise = np.random.default_rng(0).uniform(0, 255, (count, height, width))
    blurred = scipy.ndimage.gaussian_filter(noise, (0, 3, 3))
    low, high = blurred.min(), blurred.max()
    return ((blurred - low) / (high - low) * 255).astype(np.uint8)[..., None]


def test_zscore_is_numpys() -> None:
    x = smooth_images(3) / 255.0
    mean, std = x.mean(axis=(1, 2, 3), keepdims=True), x.std(axis=(1, 2, 3), keepdims=True)
    np.testing.assert_allclose(normalize(jnp.asarray(x), "zscore"), (x - mean) / std, atol=1e-4)


@pytest.mark.parametrize("size", [48, 200])
def test_percentiles_become_minus_one_and_one(size: int) -> None:
    x = smooth_images(2, size, size) / 255.0
    found = np.asarray(normalize(jnp.asarray(x), "percentile"))
    low, high = np.percentile(found, [1, 99], axis=(1, 2, 3))
    np.testing.assert_allclose(low, -1.0, atol=1e-4 if size == 48 else 0.05)
    np.testing.assert_allclose(high, 1.0, atol=1e-4 if size == 48 else 0.05)


@pytest.mark.parametrize("method", ["zscore", "percentile"])
def test_normalisation_ignores_exposure(method: str) -> None:
    x = jnp.asarray(smooth_images(3) / 255.0, jnp.float32)
    other = normalize(0.3 * x + 0.2, method)
    np.testing.assert_allclose(other, normalize(x, method), atol=1e-4)
    constant = normalize(jnp.full((1, 8, 8, 1), 0.7), method)
    np.testing.assert_allclose(constant, 0.0, atol=1e-3)


def test_no_normalisation_and_a_wrong_one() -> None:
    x = jnp.asarray(smooth_images(1) / 255.0, jnp.float32)
    np.testing.assert_array_equal(normalize(x, "none"), x)
    with pytest.raises(InputError, match=r"config\.normalize='max'"):
        normalize(x, "max")


def test_equalized_grey_levels_are_uniform_ranks():
    rng = np.random.default_rng(5)
    x = rng.gamma(2.0, 0.1, (2, 64, 64, 1)).astype(np.float32)
    found = np.asarray(normalize(jnp.asarray(x), "equalize"))
    for image, equalized in zip(x, found, strict=True):
        rank = scipy.stats.rankdata(image).reshape(image.shape) / image.size
        np.testing.assert_allclose(equalized, (rank - 0.5) * np.sqrt(12), atol=0.06)
        assert equalized.mean() == pytest.approx(0, abs=0.02)
        assert equalized.std() == pytest.approx(1, abs=0.02)


def test_equalizing_undoes_any_tone_curve():
    rng = np.random.default_rng(6)
    x = jnp.asarray(rng.uniform(0.1, 0.9, (1, 48, 48, 1)), jnp.float32)
    plain = normalize(x, "equalize")
    for curve in (jnp.sqrt, jnp.square, lambda v: 0.2 + 0.3 * v):
        np.testing.assert_allclose(normalize(curve(x), "equalize"), plain, atol=0.03)

"""JPEG compression and noise in part of the images, against OpenCV's libjpeg and counted parts."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from boneage_jax.data.augment import AugmentConfig, augment
from boneage_jax.data.image_quality import compressed, drawn_quality
from boneage_jax.errors import InputError


def textured(height: int, width: int) -> np.ndarray:
    """Edges and grain, as a radiograph has, uint8 [H, W]."""
    rng = np.random.default_rng(0)
    image = np.zeros((height, width), np.float32)
    for _ in range(12):
        centre = (int(rng.integers(width)), int(rng.integers(height)))
        cv2.circle(image, centre, int(rng.integers(5, 20)), float(rng.integers(60, 255)), -1)
    return (cv2.GaussianBlur(image, (0, 0), 1.0) + rng.normal(0, 4, image.shape)).clip(0, 255)


@pytest.mark.parametrize("shape", [(96, 72), (61, 45)])
def test_compression_is_that_of_libjpeg(shape: tuple[int, int]) -> None:
    image = np.rint(textured(*shape)).astype(np.uint8)
    qualities = [5, 20, 49, 50, 80, 100]
    batch = jnp.repeat(jnp.asarray(image)[None, :, :, None] / 255.0, len(qualities), axis=0)
    found = np.asarray(jax.jit(compressed)(batch, jnp.asarray(qualities, jnp.float32)))[..., 0]
    for quality, ours in zip(qualities, found * 255, strict=True):
        encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        wanted = cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE).astype(np.float32)
        change = np.abs(wanted - image).mean()
        # libjpeg transforms in integers, which rounds a few coefficients to the other side.
        assert np.abs(ours - wanted).mean() < 0.08 * change + 0.1
        assert np.mean(np.abs(ours - wanted) > 1.5) < 0.04
        assert np.abs(ours - image).mean() == pytest.approx(change, rel=0.003, abs=0.01)


def test_noise_and_compression_fall_on_their_parts_of_the_images() -> None:
    images = np.repeat(np.rint(textured(32, 24)).astype(np.uint8)[None, ..., None], 600, axis=0)
    keys = jax.random.split(jax.random.key(0), 600)

    def changed(**settings: float) -> np.ndarray:
        out = np.asarray(augment(images, keys, AugmentConfig(**settings)))
        return np.abs(out * 255 - images).max(axis=(1, 2, 3)) > 0.01

    noise = changed(noise=0.1, noise_probability=0.3)
    jpeg = changed(jpeg=0.2)
    assert noise.mean() == pytest.approx(0.3, abs=0.06)
    assert jpeg.mean() == pytest.approx(0.2, abs=0.05)
    assert np.mean(noise & jpeg) == pytest.approx(0.06, abs=0.03)
    both = changed(noise=0.1, noise_probability=0.3, jpeg=0.2)
    np.testing.assert_array_equal(both, noise | jpeg)


def test_all_noise_is_drawn_as_without_a_probability() -> None:
    images = np.full((8, 16, 16, 1), 100, np.uint8)
    keys = jax.random.split(jax.random.key(1), 8)
    always = np.asarray(augment(images, keys, AugmentConfig(noise=0.1)))
    mostly = np.asarray(augment(images, keys, AugmentConfig(noise=0.1, noise_probability=0.99)))
    some = np.asarray(augment(images, keys, AugmentConfig(noise=0.1, noise_probability=0.5)))
    np.testing.assert_array_equal(mostly, always)
    noisy = np.ptp(some, axis=(1, 2, 3)) > 0
    assert 0 < noisy.sum() < 8
    np.testing.assert_array_equal(some[noisy], always[noisy])


def test_qualities_fill_their_range() -> None:
    found = np.asarray(drawn_quality(jnp.array([0.0, 0.5, 1.0]), 30.0))
    np.testing.assert_allclose(found, [30.0, 55.0, 80.0])
    with pytest.raises(InputError, match="jpeg_quality"):
        AugmentConfig(jpeg_quality=90.0)

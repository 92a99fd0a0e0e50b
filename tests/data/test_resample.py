"""Images read at a smaller size than they are stored, against SciPy, an invariance and a ramp."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from boneage_jax.data.augment import AugmentConfig, augment, unaugmented
from boneage_jax.data.resample import Geometry, Reach, resample, resize

STORED = 60
SHAPES = [(60, 60), (30, 24), (41, 33), (60, 47)]


def smooth(count: int = 1) -> np.ndarray:
    """Blurred noise that is zero at the border, where the methods differ by their padding."""
    noise = np.random.default_rng(0).uniform(0, 1, (count, STORED, STORED)).astype(np.float32)
    blurred = np.stack([cv2.GaussianBlur(image, (0, 0), 3.0) for image in noise]) - 0.3
    blurred[:, [0, 1, 2, -3, -2, -1]] = blurred[:, :, [0, 1, 2, -3, -2, -1]] = 0
    return blurred[..., None]


def geometry(matrix: list[list[float]], dx: float = 0.0, dy: float = 0.0) -> Geometry:
    return Geometry(jnp.array([matrix]), jnp.array([dx]), jnp.array([dy]))


def by_scipy(image: np.ndarray, matrix: np.ndarray, moved: tuple, shape: tuple) -> np.ndarray:
    """The documented reading, pixel by pixel: the mean of one point per covered stored pixel."""
    height, width = shape
    scale = np.array([STORED / width, STORED / height])
    counts = [max(round(STORED / length), 1) for length in (width, height)]
    found = np.zeros(shape)
    for row in range(height):
        for column in range(width):
            x, y = (
                at + (np.arange(n) + 0.5) / n - 0.5 - (length - 1) / 2 - shift * length
                for at, n, length, shift in zip(
                    (column, row), counts, (width, height), moved, strict=True
                )
            )
            points = matrix @ np.stack([a.ravel() for a in np.meshgrid(x, y)])
            u, v = points * scale[:, None] + (STORED - 1) / 2
            read = scipy.ndimage.map_coordinates(image, [v, u], order=1, cval=0.0)
            found[row, column] = read.mean()
    return found


@pytest.mark.parametrize("shape", SHAPES)
def test_gather_reads_the_mean_of_the_points_that_a_pixel_covers(shape) -> None:
    image = smooth()
    matrix, moved = np.array([[0.9, 0.35], [-0.3, 1.1]]), (0.05, -0.1)
    found = resample(
        image, geometry(matrix.tolist(), *moved), Reach(30, 0, 0.2, 0.2), "gather", shape
    )
    wanted = by_scipy(image[0, ..., 0], matrix, moved, shape)
    np.testing.assert_allclose(found[0, ..., 0], wanted, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_two_passes_equal_the_gather_where_rows_stay_rows(shape) -> None:
    maps = geometry([[-0.8, 0.0], [0.0, 1.2]], 0.1, -0.05)
    reach = Reach(0, 0, 0.3, 0.2)
    found = [resample(smooth(), maps, reach, method, shape) for method in ("matmul", "gather")]
    np.testing.assert_allclose(*found, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_two_passes_are_near_the_gather_for_a_rotation(shape) -> None:
    angle = np.deg2rad(25.0)
    maps = geometry([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    found = [
        np.asarray(resample(smooth(), maps, Reach(25, 0, 0.0, 0.0), method, shape))
        for method in ("matmul", "gather")
    ]
    # The shears interpolate once more, see `_two_pass`.
    assert np.abs(found[0] - found[1]).mean() < 0.002
    assert np.quantile(np.abs(found[0] - found[1]), 0.95) < 0.015


@pytest.mark.parametrize("zoom", [1.0, 1.3])
@pytest.mark.parametrize("shape", SHAPES)
def test_resize_is_the_map_that_moves_nothing(shape, zoom) -> None:
    image, still = smooth(), geometry([[1 / zoom, 0.0], [0.0, 1 / zoom]])
    moved = resample(image, still, Reach(0, 0, 0, 0), "gather", shape)
    np.testing.assert_allclose(resize(image, shape, zoom), moved, atol=1e-5)


@pytest.mark.parametrize("stored", [40, 60])
def test_a_magnified_disc_grows_by_the_square(stored) -> None:
    """Whether it is made smaller or read at its stored size."""
    rows, columns = np.mgrid[:stored, :stored] - (stored - 1) / 2
    disc = (255.0 * (np.hypot(rows, columns) < stored / 5)).astype(np.uint8)[None, ..., None]
    areas = [
        float(np.asarray(unaugmented(disc, AugmentConfig(), (40, 40), zoom)).sum())
        for zoom in (1.0, 1.4)
    ]
    np.testing.assert_allclose(areas[1], 1.4**2 * areas[0], rtol=0.03)


def test_resize_keeps_a_ramp() -> None:
    ramp = np.broadcast_to(np.arange(96.0, dtype=np.float32)[:, None, None], (1, 96, 96, 1))
    small = np.asarray(resize(ramp, (40, 32)))
    # The centre of row k of 40 lies at (k + 0.5) 96 / 40 - 0.5.
    expected = (np.arange(40) + 0.5) * 2.4 - 0.5
    np.testing.assert_allclose(small[0, 1:-1, :, 0], expected[1:-1, None] + np.zeros(32), atol=1e-4)


def test_a_rotation_turns_what_the_network_sees() -> None:
    """A cone that was stretched to a square is round again in the rectangle, at any angle."""
    rows, columns = np.mgrid[:STORED, :STORED] - (STORED - 1) / 2
    height = 1 - np.hypot(rows / 22, columns / 27.5)
    disc = (np.maximum(height, 0) * 255)[None, ..., None].astype(np.uint8)
    shape = (50, 40)
    keys = jax.random.split(jax.random.key(0), 6)
    images = np.repeat(disc, 6, axis=0)
    config = AugmentConfig(rotate=45.0, fill=0)
    turned = np.asarray(jax.jit(lambda x: augment(x, keys, config, shape=shape))(images))
    still = np.asarray(unaugmented(images[:1], config, shape))
    assert turned.shape == (6, 50, 40, 1) and still.shape == (1, 50, 40, 1)
    np.testing.assert_allclose(turned, np.repeat(still, 6, axis=0), atol=0.03)
    assert 0.1 < still.mean() < 0.3


def test_a_mask_moves_with_its_image() -> None:
    mask = np.zeros((4, STORED, STORED, 1), np.uint8)
    mask[:, 15:40, 20:50] = 1
    config = AugmentConfig(flip=0.5, rotate=20.0, zoom=0.2, fill=0)
    keys = jax.random.split(jax.random.key(1), 4)
    images, moved = jax.jit(lambda x, m: augment(x, keys, config, m, shape=(30, 24)))(
        mask * 255, mask
    )
    assert images.shape == moved.shape == (4, 30, 24, 1)
    np.testing.assert_array_equal(np.asarray(images) > 0.5, np.asarray(moved))

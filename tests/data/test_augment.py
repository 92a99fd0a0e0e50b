"""Augmentation against OpenCV, NumPy and closed forms; normalisation against its invariances."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from boneage_jax.data import augment as module
from boneage_jax.data.augment import AugmentConfig, augment, unaugmented
from boneage_jax.errors import InputError

SIZE = 48


def smooth_images(count: int, height: int = SIZE, width: int = SIZE) -> np.ndarray:
    """Blurred noise: an error of a tenth of a pixel shows, one more interpolation does not."""
    noise = np.random.default_rng(0).uniform(0, 255, (count, height, width)).astype(np.float32)
    blurred = np.stack([cv2.GaussianBlur(image, (0, 0), 3.0) for image in noise])
    low, high = blurred.min(), blurred.max()
    return ((blurred - low) / (high - low) * 255).astype(np.uint8)[..., None]


def keys(count: int, seed: int = 0) -> jax.Array:
    return jax.random.split(jax.random.key(seed), count)


compiled = jax.jit(augment, static_argnums=2)


def run(images: np.ndarray, batch_keys: jax.Array, **settings) -> np.ndarray:
    return np.asarray(compiled(images, batch_keys, AugmentConfig(**settings)))


def run_fixed(images: np.ndarray, **settings) -> np.ndarray:
    """As `run`, compiled afresh: what was traced before holds other draws."""
    config, batch_keys = AugmentConfig(**settings), keys(len(images))
    return np.asarray(jax.jit(lambda x: augment(x, batch_keys, config))(images))


def fixed(monkeypatch: pytest.MonkeyPatch, **draws: float) -> None:
    """Makes every uniform draw known: 0 is the lower end of a range, 1 its upper end."""
    values = jnp.array([draws.get(name, 0.5) for name in module._DRAWS])
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape: values + 0.0 * key_bits(key))


def key_bits(key: jax.Array) -> jax.Array:
    return jax.random.key_data(key)[0].astype(jnp.float32)


def expected(
    image: np.ndarray,
    *,
    flip: bool = False,
    rotate: float = 0.0,
    shear: float = 0.0,
    zoom: float = 1.0,
    translate: tuple[float, float] = (0.0, 0.0),
    fill: float = 0.0,
) -> np.ndarray:
    """The documented transform by cv2.warpAffine, from matrices written out forwards."""
    height, width = image.shape[:2]
    angle, slope = np.deg2rad(rotate), np.tan(np.deg2rad(shear))
    turn = [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]  # y points down
    mirror = np.diag([-1.0 if flip else 1.0, 1.0])
    matrix = zoom * np.eye(2) @ [[1.0, slope], [0.0, 1.0]] @ turn @ mirror
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    shift = centre - matrix @ centre + np.array(translate) * [width, height]
    return cv2.warpAffine(
        image[..., 0].astype(np.float32) / 255.0,
        np.column_stack([matrix, shift]),
        (width, height),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=fill,
    )


# name: (settings of AugmentConfig, draws, the transform they amount to)
TRANSFORMS = {
    "mirror": ({"flip": 1.0, "zoom": 1e-6}, {}, {"flip": True}),
    "counter-clockwise": ({"rotate": 20.0}, {"rotate": 1.0}, {"rotate": 20.0}),
    "clockwise": ({"rotate": 45.0}, {"rotate": 0.0}, {"rotate": -45.0}),
    "shear": ({"shear": 12.0}, {"shear": 1.0}, {"shear": 12.0}),
    "grow": ({"zoom": 0.3}, {"zoom": 1.0}, {"zoom": 1.3}),
    "shrink": ({"zoom": 0.3}, {"zoom": 0.0}, {"zoom": 0.7}),
    "move": (
        {"translate": 0.2},
        {"translate_x": 1.0, "translate_y": 0.25},
        {"translate": (0.2, -0.1)},
    ),
    "all": (
        {"flip": 1.0, "rotate": 30.0, "shear": 10.0, "zoom": 0.2, "translate": 0.1},
        {"rotate": 1.0, "shear": 0.0, "zoom": 0.0, "translate_x": 0.0, "translate_y": 1.0},
        {
            "flip": True,
            "rotate": 30.0,
            "shear": -10.0,
            "zoom": 0.8,
            "translate": (-0.1, 0.1),
        },
    ),
}


@pytest.mark.parametrize("resample", ["matmul", "gather"])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_geometry_is_the_documented_one(monkeypatch, name: str, resample: str) -> None:
    settings, draws, transform = TRANSFORMS[name]
    fixed(monkeypatch, **draws)
    images = smooth_images(1, 40, 56)
    found = run_fixed(images, **settings, fill=0, resample=resample)[0, ..., 0]
    wanted = expected(images[0], **transform)
    # OpenCV rounds positions to 1/32 pixel. The two-pass way interpolates sheared images once
    # more, which shows at the edge of the frame, where the image ends against black.
    sheared = resample == "matmul" and (settings.get("rotate") or settings.get("shear"))
    inside = cv2.erode(np.float32(wanted > 0), np.ones((7, 7)), borderValue=0.0) > 0
    assert inside.sum() > 300
    assert np.abs(found - wanted)[inside].max() < 0.02
    assert np.abs(found - wanted).mean() < (0.01 if sheared else 0.002)
    outside = expected(np.full_like(images[0], 255), **transform) == 0.0
    outside = cv2.erode(np.float32(outside), np.ones((5, 5)), borderValue=1.0) > 0
    assert not found[outside].any()


@pytest.mark.parametrize("settings", [{"zoom": 0.4, "translate": 0.3}, {"rotate": 40, "shear": 15}])
def test_two_pass_agrees_with_gather(settings) -> None:
    images = smooth_images(24)
    settings = settings | {"flip": 0.5}
    matmul = run(images, keys(24), **settings, resample="matmul")
    gather = run(images, keys(24), **settings, resample="gather")
    if "rotate" not in settings:
        np.testing.assert_allclose(matmul, gather, atol=2e-5)
    else:
        assert np.abs(matmul - gather).mean() < 0.006
        assert np.quantile(np.abs(matmul - gather), 0.95) < 0.03


def test_everything_off_only_rescales() -> None:
    images = smooth_images(3)
    np.testing.assert_allclose(run(images, keys(3)), images / 255.0, atol=1e-7)
    traced = jax.make_jaxpr(lambda x: augment(x, keys(3), AugmentConfig()))(images)
    names = {str(equation.primitive) for equation in traced.eqns}
    assert not names & {"select_n", "dot_general", "gather", "sort", "rev", "pow", "clamp"}


def test_flip_is_exact_and_has_its_probability() -> None:
    images = smooth_images(400, 8, 8)
    found = run(images, keys(400), flip=0.3)
    flipped = np.isclose(found, images[:, :, ::-1] / 255.0, atol=1e-7).all(axis=(1, 2, 3))
    same = np.isclose(found, images / 255.0, atol=1e-7).all(axis=(1, 2, 3))
    assert (flipped | same).all()
    assert abs(flipped.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 400)


def test_draws_fill_their_range() -> None:
    images = np.full((600, 2, 2, 1), 102, np.uint8)
    found = run(images, keys(600), brightness=0.2)[:, 0, 0, 0] - 0.4
    assert -0.2 <= found.min() < -0.19 and 0.19 < found.max() <= 0.2
    assert abs(found.std() - 0.4 / np.sqrt(12)) < 0.01


def test_intensities_have_their_closed_form(monkeypatch) -> None:
    images = smooth_images(2)
    x = images / 255.0
    mean = x.mean(axis=(1, 2, 3), keepdims=True)
    fixed(monkeypatch, brightness=1.0, contrast=0.0, gamma=1.0, invert=0.1)
    for settings, wanted in (
        ({"brightness": 0.3}, np.clip(x + 0.3, 0, 1)),
        ({"contrast": 0.5}, mean + 0.5 * (x - mean)),
        ({"gamma": 0.4}, x**1.4),
        ({"invert": 0.2}, 1 - x),
        ({"invert": 0.1}, x),
        ({"brightness": 0.3, "gamma": 0.4, "invert": 1}, 1 - np.clip(x + 0.3, 0, 1) ** 1.4),
    ):
        np.testing.assert_allclose(run_fixed(images, **settings), wanted, atol=2e-6)


def test_all_together_stay_in_range() -> None:
    found = run(
        smooth_images(16),
        keys(16),
        **{"flip": 0.5, "rotate": 25, "translate": 0.2, "zoom": 0.3, "shear": 10},
        **{"brightness": 0.5, "contrast": 0.9, "gamma": 0.5, "invert": 0.5},
    )
    assert found.dtype == np.float32
    assert found.min() >= 0.0 and found.max() <= 1.0


@pytest.mark.parametrize("resample", ["matmul", "gather"])
@pytest.mark.parametrize("rotate", [0.0, 25.0])
def test_mask_moves_with_its_image(rotate: float, resample: str) -> None:
    masks = smooth_images(8) > 140
    settings = {"flip": 0.5, "rotate": rotate, "translate": 0.1, "zoom": 0.2}
    config = AugmentConfig(**settings, fill=0, resample=resample)
    images, moved = compiled(np.uint8(masks) * 255, keys(8), config, masks)
    assert moved.dtype == bool and moved.shape == masks.shape
    np.testing.assert_array_equal(np.asarray(moved), np.asarray(images) > 0.5)
    assert np.any(np.asarray(moved) != masks)
    _, mirrored = augment(np.uint8(masks), keys(8), AugmentConfig(flip=1.0), masks)
    np.testing.assert_array_equal(np.asarray(mirrored), masks[:, :, ::-1])


@pytest.mark.parametrize("resample", ["matmul", "gather"])
def test_an_image_is_augmented_alike_in_any_batch(resample: str) -> None:
    images = smooth_images(6)
    settings = {"flip": 0.5, "rotate": 10, "zoom": 0.1, "gamma": 0.2, "resample": resample}
    together = run(images, keys(6), **settings)
    np.testing.assert_array_equal(together, run(images, keys(6), **settings))
    parts = [run(images[i : i + 2], keys(6)[i : i + 2], **settings) for i in (0, 2, 4)]
    np.testing.assert_allclose(together, np.concatenate(parts), atol=1e-6)
    assert np.abs(together - run(images, keys(6, seed=1), **settings)).max() > 0.05


def test_switching_one_transform_leaves_the_draws_of_others() -> None:
    images = smooth_images(4)
    plain = run(images, keys(4), flip=0.5)
    assert np.abs(run(images, keys(4), flip=0.5, gamma=0.3) - plain).max() > 0.02
    np.testing.assert_allclose(run(images, keys(4), flip=0.5, invert=1.0), 1.0 - plain, atol=1e-6)


@pytest.mark.parametrize("resample", ["matmul", "gather"])
def test_border_fill_hides_the_frame(resample: str) -> None:
    images = np.full((4, SIZE, SIZE, 1), 77, np.uint8)
    settings = {"rotate": 30, "zoom": 0.3, "translate": 0.3, "resample": resample}
    np.testing.assert_allclose(run(images, keys(4), **settings), 77 / 255, atol=1e-5)
    assert run(images, keys(4), **settings, fill=0).min() == 0.0


def test_config_from_dict() -> None:
    values = {"flip": 0.5, "rotate": 10, "fill": "border"}
    wanted = AugmentConfig(flip=0.5, rotate=10)
    assert AugmentConfig.from_dict(values) == AugmentConfig.from_dict(ConfigDict(values)) == wanted
    assert AugmentConfig.from_dict({}) == AugmentConfig()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"rotation": 3.0}, "augment.rotation"),
        ({"flip": 1.5}, "augment.flip=1.5"),
        ({"flip": float("nan")}, "augment.flip=nan"),
        ({"zoom": 1.0}, "augment.zoom=1.0"),
        ({"gamma": "a lot"}, "augment.gamma='a lot'"),
        ({"rotate": True}, "augment.rotate=True"),
        ({"fill": "white"}, "augment.fill='white'"),
        ({"resample": "cubic"}, "augment.resample='cubic'"),
        ({"resample": "matmul", "rotate": 60.0, "shear": 5.0}, "rotate \\+ shear <= 60"),
    ],
)
def test_config_refuses(values, words: str) -> None:
    with pytest.raises(InputError, match=words):
        AugmentConfig.from_dict(values)


def test_a_frame_is_white_on_the_image_and_nothing_on_the_mask():
    images = np.full((64, 40, 50, 1), 100, np.uint8)
    mask = np.ones_like(images)
    keys = jax.random.split(jax.random.key(3), 64)
    out, moved = augment(images, keys, AugmentConfig(frame=0.5), mask)
    framed = np.array([not m.all() for m in np.asarray(moved)])
    assert 0.3 < framed.mean() < 0.7
    np.testing.assert_allclose(out[~framed], 100 / 255, rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(out) == 1.0, ~np.asarray(moved))
    inner = np.asarray(moved)[:, 5:-5, 6:-6]  # 12 % of 40 and of 50, rounded up
    assert inner.all()
    # The other draws do not change.
    settings = {"flip": 0.5, "brightness": 0.2}
    plain = augment(images, keys, AugmentConfig(**settings))
    with_frame = augment(images, keys, AugmentConfig(**settings, frame=0.5))
    np.testing.assert_array_equal(plain[~framed], with_frame[~framed])


def test_shading_is_smooth_and_leaves_the_mask_and_the_other_draws():
    images = np.full((8, 60, 60, 1), 128, np.uint8)
    mask = np.zeros_like(images)
    mask[:, 20:40, 20:40] = 1
    keys = jax.random.split(jax.random.key(1), 8)
    out, same = augment(images, keys, AugmentConfig(shading=0.3), mask)
    np.testing.assert_array_equal(same, mask > 0)
    field = np.asarray(out)[..., 0] - 128 / 255
    assert np.abs(field).max() <= 0.3 + 1e-6
    assert field.std(axis=(1, 2)).min() > 0.05
    # A grid of 5 points over 60 pixels: at most 2 x 0.3 over 12 pixels.
    assert np.abs(np.diff(field, axis=1)).max() <= 0.6 / 12 + 1e-4
    flipped = augment(images, keys, AugmentConfig(brightness=0.2))
    shaded = augment(images, keys, AugmentConfig(brightness=0.2, shading=0.01))
    assert np.abs(np.asarray(flipped) - np.asarray(shaded)).max() <= 0.01 + 1e-6


def test_evaluation_images_are_as_sharp_as_augmented_ones_on_average():
    """How much of a wave of 4 and of 8 pixels is left, of an impulse moved by parts of a pixel."""
    image = np.zeros((1, 33, 33, 1), np.uint8)
    image[0, 16, 16] = 255
    still = np.asarray(unaugmented(image, AugmentConfig(translate=0.1)))
    keys = jax.random.split(jax.random.key(0), 2000)
    moved = augment(np.repeat(image, 2000, axis=0), keys, AugmentConfig(translate=0.1, fill=0))

    def left(images: np.ndarray, axis: int, pixels: int) -> float:
        profiles = np.asarray(images)[..., 0].sum(axis=3 - axis)
        wave = np.exp(2j * np.pi * np.arange(33) / pixels)
        return np.abs(profiles @ wave).mean()

    for axis in (1, 2):
        for pixels in (4, 8):
            assert left(still, axis, pixels) == pytest.approx(left(moved, axis, pixels), abs=0.02)
    assert left(moved, 1, 4) == pytest.approx(0.81, abs=0.01)
    # Without interpolation nothing is blurred, and a flat image stays flat.
    np.testing.assert_array_equal(unaugmented(image, AugmentConfig(flip=0.5)) * 255, image)
    flat = np.full((1, 9, 9, 1), 77, np.uint8)
    np.testing.assert_allclose(unaugmented(flat, AugmentConfig(zoom=0.1)), 77 / 255, rtol=1e-6)


def test_noise_has_the_drawn_amounts_and_leaves_the_other_draws():
    images = np.full((400, 24, 24, 1), 128, np.uint8)
    keys = jax.random.split(jax.random.key(2), 400)
    out = np.asarray(augment(images, keys, AugmentConfig(noise=0.1)))
    spread = out.std(axis=(1, 2, 3))
    assert spread.max() < 0.12 and spread.mean() == pytest.approx(0.05, rel=0.1)
    assert np.corrcoef(out[0].ravel(), out[1].ravel())[0, 1] < 0.2
    plain = augment(images, keys, AugmentConfig(brightness=0.2))
    noisy = augment(images, keys, AugmentConfig(brightness=0.2, noise=1e-3))
    assert np.abs(np.asarray(plain) - np.asarray(noisy)).max() < 0.01


def test_blur_lies_between_an_image_and_its_smoothed_copy():
    image = np.random.default_rng(0).integers(0, 256, (30, 40), dtype=np.uint8)
    kernel = np.array([1, 4, 6, 4, 1]) / 16
    smooth = cv2.sepFilter2D(image / 255, -1, kernel, kernel, borderType=cv2.BORDER_REPLICATE)
    images = np.repeat(image[None, :, :, None], 50, axis=0)
    keys = jax.random.split(jax.random.key(3), 50)
    out = np.asarray(augment(images, keys, AugmentConfig(blur=0.8)))[..., 0] - image / 255
    step = (smooth - image / 255).ravel()
    parts = out.reshape(50, -1) @ step / (step @ step)
    np.testing.assert_allclose(out.reshape(50, -1), parts[:, None] * step, atol=1e-6)
    assert parts.min() >= 0 and 0.7 < parts.max() <= 0.8

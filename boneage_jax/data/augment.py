"""Augmentation of image batches, on the device and inside the jitted step.

Random draws derive from one key per image, so an image is augmented the same way in any batch and
on any device. A transform whose range is 0 in the config is never traced. The cost of geometric
transforms: `boneage_jax.data.resample`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, overload

import dm_pix as pix
import jax
import jax.numpy as jnp

from boneage_jax.data.image_quality import blurred, compressed, drawn_quality, noisy
from boneage_jax.data.resample import STEEPEST, Geometry, Reach, resample, resize
from boneage_jax.errors import InputError
from boneage_jax.ranges import check_value

# One uniform draw per name and image. The order is fixed: switching a transform on or off, or
# changing its range, does not change the draws of the others.
_DRAWS = (
    *("flip", "rotate", "shear", "zoom", "translate_x", "translate_y"),
    *("brightness", "contrast", "gamma", "invert"),
)
_FRAME_DRAWS = ("frame", "left", "top", "right", "bottom")
_WIDEST_FRAME = 0.12  # fraction of the image, on each side
_SHADES = 5  # grid points per side between which the shading is interpolated


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Ranges of the uniform draws for each image; 0 switches a transform off.

    Geometric transforms are about the image centre, in the order flip, rotate, shear, zoom,
    translate.

    Attributes:
      flip: probability of a left-right mirror image.
      rotate: degrees, drawn from ±rotate; positive turns the content counter-clockwise.
      translate: fraction of width and height, drawn for each axis; positive moves the content right
        and down.
      zoom: the magnification is drawn from 1 ± zoom; above 1 the content grows.
      shear: degrees, drawn from ±shear; positive moves the upper rows to the left and the lower
        rows to the right, x' = x + tan(shear) y.
      brightness: added to the image, in units of the full range 0..1.
      contrast: the deviation from the image mean is multiplied by 1 ± contrast.
      gamma: the image is raised to the power 1 ± gamma.
      invert: probability of swapping black and white.
      shading: a smooth field of brightness drawn from ±shading is added, in units of the full
        range, so that the contrast between hand and background varies over the image.
      blur: part of the image that is replaced by itself smoothed by a Gaussian of 1 pixel, drawn
        from 0..blur for each image.
      noise: standard deviation of the noise added to each pixel, drawn from 0..noise for each
        image, in units of the full range.
      noise_probability: of an image getting noise.
      jpeg: probability of an image being compressed as JPEG.
      jpeg_quality: lowest quality of that, as libjpeg counts; drawn from jpeg_quality..80.
      frame: probability of a white frame as left by scanners, up to 12 % of the image wide on each
        side, painted over image and mask.
      fill: grey value outside the image: 'border' is the median of the outermost pixels of the
        image, 0 is black.
      resample: 'matmul' | 'gather' | 'auto', see boneage_jax/data/resample.py.
      extra: comma-separated names of registered augmentations to apply afterwards.

    Raises:
      InputError: a value is out of range.
    """

    flip: float = 0.0
    rotate: float = 0.0
    translate: float = 0.0
    zoom: float = 0.0
    shear: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    gamma: float = 0.0
    invert: float = 0.0
    shading: float = 0.0
    blur: float = 0.0
    noise: float = 0.0
    noise_probability: float = 1.0
    jpeg: float = 0.0
    jpeg_quality: float = 20.0
    frame: float = 0.0
    fill: str | int = "border"
    resample: str = "auto"
    extra: str = ""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if field.name != "fill":
                check_value(f"augment.{field.name}", getattr(self, field.name))
        if self.fill not in ("border", "0", 0) or isinstance(self.fill, bool):
            raise InputError(f"config.augment.fill={self.fill!r} must be border or 0")
        if self.resample == "matmul" and not self.reach.gentle:
            raise InputError(
                f"config.augment.resample='matmul' needs rotate + shear <= {STEEPEST:g} degrees, "
                f"got {self.rotate:g} + {self.shear:g}; use 'gather' or 'auto'"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "AugmentConfig":
        """Builds the config from a dict or ConfigDict; missing keys take their defaults.

        Raises:
          InputError: names a key that is unknown or a value out of range.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise InputError(
                    f"unknown config key 'augment.{key}'; known are {', '.join(known)}"
                )
        return cls(**{key: values[key] for key in values})

    @property
    def reach(self) -> Reach:
        """Bounds on the geometric transforms that are drawn."""
        return Reach(self.rotate, self.shear, self.zoom, self.translate)

    @property
    def _resamples(self) -> bool:
        return bool(self.rotate or self.shear or self.zoom or self.translate)


@overload
def augment(
    images: jax.Array,
    keys: jax.Array,
    config: AugmentConfig,
    *,
    shape: tuple[int, int] | None = ...,
) -> jax.Array: ...
@overload
def augment(
    images: jax.Array,
    keys: jax.Array,
    config: AugmentConfig,
    mask: jax.Array,
    *,
    shape: tuple[int, int] | None = ...,
) -> tuple[jax.Array, jax.Array]: ...
def augment(
    images: jax.Array,
    keys: jax.Array,
    config: AugmentConfig,
    mask: jax.Array | None = None,
    *,
    shape: tuple[int, int] | None = None,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Augments each image with its own random draws.

    Args:
      images: uint8 [B, H, W, 1].
      keys: typed random keys [B], one per image.
      config: ranges of the draws.
      mask: bool or 0/1 [B, H, W, 1]; transformed together with its image.
      shape: height and width of the result, at most H and W; those of `images` if None.

    Returns:
      Images float32 [B, height, width, 1] in [0, 1]; with `mask`, the pair (images, mask as bool).
    """
    draws = jax.vmap(lambda key: jax.random.uniform(key, (len(_DRAWS),)))(keys)
    draw = dict(zip(_DRAWS, draws.T, strict=True))  # each [B], in [0, 1)
    flip = draw["flip"] < config.flip
    stored = images.shape[1], images.shape[2]
    shape = shape or stored
    moves = config._resamples or shape != stored
    if config.flip and not moves:
        images = _mirror(images, flip)
        mask = None if mask is None else _mirror(mask, flip)
    x = images.astype(jnp.float32) / 255.0
    if mask is not None:
        mask = mask.astype(jnp.float32)
    if moves:
        fill = _border(images) / 255.0 if config.fill == "border" else jnp.zeros(len(images))
        # Relative to its fill value an image is zero outside, like a mask, so both are resampled
        # as channels of one array.
        x = x - fill[:, None, None, None]
        layers = x if mask is None else jnp.concatenate([x, mask], axis=-1)
        geometry = _geometry(draw, flip, config)
        layers = resample(layers, geometry, config.reach, config.resample, shape)
        x = layers[..., :1] + fill[:, None, None, None]
        mask = None if mask is None else layers[..., 1:]
    if config.shading:
        x = x + config.shading * _shading(keys, x.shape[1], x.shape[2])
    x = _intensities(x, draw, config)
    if config.blur or config.noise or config.jpeg:
        x = _degraded(x, keys, config)
    if config.frame:
        inside = _inside_frame(keys, x.shape[1], x.shape[2], config.frame)
        x = jnp.where(inside, x, 1.0)
        mask = None if mask is None else mask * inside
    return x if mask is None else (x, mask > 0.5)


def unaugmented(
    images: jax.Array,
    config: AugmentConfig,
    shape: tuple[int, int] | None = None,
    zoom: float = 1.0,
) -> jax.Array:
    """Prepares images for evaluation: unmoved, but as sharp as `augment` leaves them on average.

    Bilinear interpolation at a random fraction f of a pixel damps a wave of 4 pixels by
    sqrt((1 - f)^2 + f^2), on average 0.81 along each axis; so does the kernel [1, 8, 1] / 10.
    Without it a network sees sharper images than it was trained on (docs/augmentation.md). Images
    that are made smaller, or magnified, are read at as many points as in training, at all fractions
    of a pixel.

    Args:
      images: uint8 [B, H, W, 1].
      config: config of the training.
      shape: height and width of the result, at most H and W; those of `images` if None.
      zoom: magnification about the centre.

    Returns:
      float32 [B, height, width, 1] in [0, 1].
    """
    x = images.astype(jnp.float32) / 255.0
    shape = shape or (x.shape[1], x.shape[2])
    if shape != x.shape[1:3] or zoom != 1:
        return resize(x, shape, zoom)
    if not config._resamples:
        return x
    for axis in (1, 2):
        size = x.shape[axis]
        ends = [jax.lax.slice_in_dim(x, at, at + 1, axis=axis) for at in (0, size - 1)]
        padded = jnp.concatenate([ends[0], x, ends[1]], axis=axis)
        before, after = (jax.lax.slice_in_dim(padded, at, at + size, axis=axis) for at in (0, 2))
        x = (before + 8.0 * x + after) / 10.0
    return x


def _geometry(draw: dict[str, jax.Array], flip: jax.Array, config: AugmentConfig) -> Geometry:
    """Returns the inverse of flip, rotate, shear and zoom, in this order."""

    def between(name: str, limit: float) -> jax.Array:
        return (2.0 * draw[name] - 1.0) * limit

    angle = jnp.deg2rad(between("rotate", config.rotate))
    slope = jnp.tan(jnp.deg2rad(between("shear", config.shear)))
    sign = jnp.where(flip, -1.0, 1.0)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    rows = [
        [sign * cos, -sign * (cos * slope + sin)],
        [sin, cos - sin * slope],
    ]
    matrix = jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)
    return Geometry(
        matrix / (1.0 + between("zoom", config.zoom))[:, None, None],
        between("translate_x", config.translate),
        between("translate_y", config.translate),
    )


def _shading(keys: jax.Array, height: int, width: int) -> jax.Array:
    """Returns smooth fields in -1..1, float32 [B, H, W, 1], drawn from separate keys."""
    own = jax.vmap(jax.random.fold_in, (0, None))(keys, len(_DRAWS) + 1)
    shape = (_SHADES, _SHADES, 1)
    grid = jax.vmap(lambda key: jax.random.uniform(key, shape, minval=-1.0, maxval=1.0))(own)
    return jax.image.resize(grid, (len(keys), height, width, 1), "linear")


def _degraded(x: jax.Array, keys: jax.Array, config: AugmentConfig) -> jax.Array:
    """Blurs, adds noise and compresses, by separate keys; float32 [B, H, W, 1] in [0, 1]."""
    own = jax.vmap(jax.random.fold_in, (0, None))(keys, len(_DRAWS) + 2)
    # Of each of these keys: itself for two amounts, 0 for pixels, 1 which are noisy, 2 for JPEG.
    blur, noise = jax.vmap(lambda key: jax.random.uniform(key, (2, 1, 1, 1)))(own).swapaxes(0, 1)
    if config.blur:
        x = blurred(x, config.blur * blur)
    if config.noise:
        deviation = config.noise * noise
        if config.noise_probability < 1:
            some = _uniform(own, 1, 1)[:, 0] < config.noise_probability
            deviation = jnp.where(some[:, None, None, None], deviation, 0.0)
        x = noisy(x, jax.vmap(jax.random.fold_in, (0, None))(own, 0), deviation)
    if config.jpeg:
        some, quality = _uniform(own, 2, 2).T
        as_file = compressed(x, drawn_quality(quality, config.jpeg_quality))
        x = jnp.where((some < config.jpeg)[:, None, None, None], as_file, x)
    return x


def _uniform(keys: jax.Array, number: int, count: int) -> jax.Array:
    """Returns draws in [0, 1) from the keys of that number that belong to `keys`, [B, count]."""
    own = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
    return jax.vmap(lambda key: jax.random.uniform(key, (count,)))(own)


def _inside_frame(keys: jax.Array, height: int, width: int, probability: float) -> jax.Array:
    """Returns False where a frame is painted; bool [B, H, W, 1].

    Drawn from separate keys, so that switching frames on does not change other draws.
    """
    draws = jax.vmap(lambda key: jax.random.uniform(key, (len(_FRAME_DRAWS),)))(
        jax.vmap(jax.random.fold_in, (0, None))(keys, len(_DRAWS))
    )
    drawn, left, top, right, bottom = draws.T[..., None]  # each [B, 1]
    x = (jnp.arange(width) + 0.5) / width
    y = (jnp.arange(height) + 0.5) / height
    columns = (x > _WIDEST_FRAME * left) & (x < 1 - _WIDEST_FRAME * right)
    rows = (y > _WIDEST_FRAME * top) & (y < 1 - _WIDEST_FRAME * bottom)
    inside = rows[:, :, None] & columns[:, None, :]
    return (inside | (drawn >= probability)[:, None])[..., None]


def _mirror(images: jax.Array, flip: jax.Array) -> jax.Array:
    return jnp.where(flip[:, None, None, None], pix.flip_left_right(images), images)


def _border(images: jax.Array) -> jax.Array:
    """Returns the median of each image's outermost pixels, float32 [B], in units of `images`."""
    sides = (images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1])
    edge = jnp.concatenate([side[..., 0] for side in sides], axis=1)
    return jnp.sort(edge, axis=1)[:, edge.shape[1] // 2].astype(jnp.float32)


def _intensities(x: jax.Array, draw: dict[str, jax.Array], config: AugmentConfig) -> jax.Array:
    """Applies brightness, contrast, gamma and inversion to [B, H, W, 1], clipped to [0, 1]."""

    def between(name: str, limit: float) -> jax.Array:
        return (2.0 * draw[name] - 1.0) * limit

    if config.brightness:
        x = jax.vmap(pix.adjust_brightness)(x, between("brightness", config.brightness))
    if config.contrast:
        x = jax.vmap(pix.adjust_contrast)(x, 1.0 + between("contrast", config.contrast))
    if config.brightness or config.contrast or config.shading or config._resamples:
        x = jnp.clip(x, 0.0, 1.0)
    if config.gamma:
        adjust = jax.vmap(lambda i, g: pix.adjust_gamma(i, g, assume_in_bounds=True))
        x = adjust(x, 1.0 + between("gamma", config.gamma))
    if config.invert:
        inverted = (draw["invert"] < config.invert)[:, None, None, None]
        x = jnp.where(inverted, 1.0 - x, x)
    return x

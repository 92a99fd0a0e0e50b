"""Mixing of images within a batch, on the device: MixUp and CutMix.

Neighbours are mixed, image 2k with image 2k + 1, in both directions. Partners are then on the same
device and in the same micro-batch, and a run mixes identically on any number of devices.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from boneage_jax.errors import InputError
from boneage_jax.ranges import check_value

Batch = dict[str, jax.Array]
_STREAM = 20_000  # folded into the keys of the images; augmentation uses smaller numbers


@dataclasses.dataclass(frozen=True)
class MixConfig:
    """How often and how strongly images are mixed.

    Attributes:
      probability: probability that a pair of images is mixed.
      mixup: alpha of MixUp (Zhang et al. 2018, arXiv:1710.09412): both images of a pair become
        weighted sums, with the weight drawn from Beta(alpha, alpha); 0 switches it off.
      cutmix: alpha of CutMix (Yun et al. 2019, arXiv:1905.04899): a rectangle, whose fraction of
        the area is drawn from Beta(alpha, alpha), is swapped between them; 0 switches it off. With
        both on, each pair gets one of the two with equal probability.

    Raises:
      InputError: a value is out of range.
    """

    probability: float = 1.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check_value(f"mix.{field.name}", getattr(self, field.name))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "MixConfig":
        """Builds the config from a dict.

        Raises:
          InputError: names an unknown key or a value out of range.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise InputError(f"unknown config key 'mix.{key}'; known are {', '.join(known)}")
        return cls(**dict(values))

    @property
    def mixes(self) -> bool:
        """Whether images are ever mixed."""
        return bool(self.probability and (self.mixup or self.cutmix))


def mix(batch: Batch, keys: jax.Array, config: MixConfig) -> Batch:
    """Mixes neighbouring images, and their labels in proportion.

    Args:
      batch: `image` float32 [B, H, W, 1], `bone_age` [B] in months, `male` [B] (1, 0, -1 for
        unknown); other values are passed through. B is even.
      keys: typed keys [B]; those of the even images are used.
      config: how to mix.

    Returns:
      The batch with mixed images and ages. `male` becomes float32, a fraction between 0 and 1, or
      -1 if the sex of either image is unknown.

    Raises:
      InputError: an odd number of images.
    """
    if not config.mixes:
        return batch
    images, count = batch["image"], batch["image"].shape[0]
    if count % 2:
        raise InputError(
            f"config.mix pairs images: {count} on a device and micro-batch is odd; choose another "
            "config.batch_size"
        )
    own = jax.vmap(jax.random.fold_in, (0, None))(keys[::2], _STREAM)
    height, width = images.shape[1:3]
    share, inside = jax.vmap(lambda key: _draw(key, (height, width), config))(own)
    # Both images of a pair keep the same `share` of themselves.
    share, inside = jnp.repeat(share, 2), jnp.repeat(inside, 2, axis=0)
    weight = inside[..., None]  # of the image itself, per pixel

    def between(values: jax.Array) -> jax.Array:
        return share * values + (1.0 - share) * _partner(values)

    male = batch["male"].astype(jnp.float32)
    known = (male >= 0) & (_partner(male) >= 0)
    return batch | {
        "image": weight * images + (1.0 - weight) * _partner(images),
        "bone_age": between(batch["bone_age"]),
        # If one sex of a pair is unknown, unmixed images still keep their own.
        "male": jnp.where(known, between(male), jnp.where(share == 1.0, male, -1.0)),
    }


def _draw(key: jax.Array, size: tuple[int, int], config: MixConfig) -> tuple[jax.Array, jax.Array]:
    """Returns (share of itself that an image keeps, weight of its own pixels [H, W])."""
    height, width = size
    mixed_key, kind_key, up_key, cut_key, place_key = jax.random.split(key, 5)
    mixed = jax.random.uniform(mixed_key) < config.probability
    cut = jax.random.uniform(kind_key) < (0.5 if config.mixup else 1.0)
    share, inside = jnp.ones(()), jnp.ones((height, width))
    if config.mixup:
        share = jax.random.beta(up_key, config.mixup, config.mixup)
        inside = jnp.full((height, width), share)
    if config.cutmix:
        # The rectangle has the proportions of the image and is entirely inside it.
        side = jnp.sqrt(1.0 - jax.random.beta(cut_key, config.cutmix, config.cutmix))
        place = jax.random.uniform(place_key, (2,)) * (1.0 - side)
        rows, columns = (
            (at >= start) & (at < start + side)
            for at, start in (
                ((jnp.arange(height) + 0.5) / height, place[0]),
                ((jnp.arange(width) + 0.5) / width, place[1]),
            )
        )
        kept = 1.0 - (rows[:, None] & columns[None, :])
        share = jnp.where(cut, kept.mean(), share)  # counted in pixels, not from the drawn area
        inside = jnp.where(cut, kept, inside)
    return jnp.where(mixed, share, 1.0), jnp.where(mixed, inside, 1.0)


def _partner(values: jax.Array) -> jax.Array:
    """Returns [B, ...] with each entry swapped with its neighbour."""
    pairs = values.reshape(-1, 2, *values.shape[1:])
    return pairs[:, ::-1].reshape(values.shape)

"""Converts stored batches to network inputs on the device: augment, normalise, mix."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from boneage_jax.data.augment import AugmentConfig, augment, unaugmented
from boneage_jax.data.mix import MixConfig, mix
from boneage_jax.data.normalize import normalize
from boneage_jax.errors import InputError
from boneage_jax.extensions import AUGMENTATIONS
from boneage_jax.ranges import ZOOM, shown

Batch = dict[str, jax.Array]
Inputs = Callable[[Batch, jax.Array | None], Batch]
_MOST_ZOOMS = 8
_EXTRA_KEYS = 40_000  # folded into the keys for registered augmentations; `mix` uses 20,000


class Labelled(Protocol):
    """Names and dtypes of the labels that a batch must hold; implemented by `Task`."""

    @property
    def labels(self) -> tuple[str, ...]: ...

    @property
    def label_dtypes(self) -> Mapping[str, Any]: ...


def input_shape(data: ConfigDict, stored: int) -> tuple[int, int]:
    """Returns height and width in pixels of what the network reads.

    Args:
      data: the `data` section of a config: `height` and `width`, 0 for all stored pixels.
      stored: height and width of the stored images.

    Raises:
      InputError: the stored images are smaller.
    """
    for key in ("height", "width"):
        if data[key] > stored:
            raise InputError(
                f"config.data.{key}={data[key]}: the stored images have {stored} pixels; choose a "
                "data.config of that size or larger"
            )
    return data.height or stored, data.width or stored


def describe_shape(shape: tuple[int, int]) -> str:
    """Returns height and width as text: '192 px', or '224 x 178 px' if they differ."""
    height, width = shape
    return f"{height} px" if height == width else f"{height} x {width} px"


def make_inputs(
    config: ConfigDict,
    *,
    mixed: bool = False,
    shape: tuple[int, int] | None = None,
    zoom: float = 1.0,
) -> Inputs:
    """Builds the function that converts a stored batch (uint8) to network inputs.

    Args:
      config: a checked config.
      mixed: mix images according to `config.mix` if keys are given; for training only.
      shape: height and width of the inputs, at most those of the stored images; None for those of
        `config.data`.
      zoom: magnification about the centre where no keys are given.

    Raises:
      InputError: an invalid value of `config.augment`, `config.mix` or `config.normalize`.
    """
    settings = AugmentConfig.from_dict(config.augment.to_dict())
    mixing = MixConfig.from_dict(config.mix.to_dict())
    method = config.normalize
    names = [name.strip() for name in settings.extra.split(",") if name.strip()]
    extra = {name: _registered(name) for name in names}

    def inputs(batch: Batch, keys: jax.Array | None) -> Batch:
        images, mask = batch["image"], batch.get("mask")
        size = shape or input_shape(config.data, images.shape[1])
        if keys is None:
            batch = batch | {"image": unaugmented(images, settings, size, zoom)}
        elif mask is not None:
            images, mask = augment(images, keys, settings, mask, shape=size)
            batch = batch | {"image": images, "mask": mask}
        else:
            batch = batch | {"image": augment(images, keys, settings, shape=size)}
        if keys is not None:
            for number, name in enumerate(names):
                own = jax.vmap(jax.random.fold_in, (0, None))(keys, _EXTRA_KEYS + number)
                batch = _kept_shape(batch, extra[name](batch, own, config), name)
        batch = batch | {"image": normalize(batch["image"], method)}
        return mix(batch, keys, mixing) if mixed and keys is not None else batch

    return inputs


def reading_inputs(config: ConfigDict) -> list[Inputs]:
    """Builds `make_inputs` for each magnification of `config.test_zooms`; one for none.

    Raises:
      InputError: not a list of at most 8 magnifications, or see `make_inputs`.
    """
    text = config.test_zooms
    try:
        zooms = [float(part) for part in text.split(",")] if text else [1.0]
    except ValueError:
        zooms = []
    if not 0 < len(zooms) <= _MOST_ZOOMS or any(zoom not in ZOOM for zoom in zooms):
        raise InputError(
            f"config.test_zooms={shown(text)} must be at most {_MOST_ZOOMS} magnifications with "
            f"commas between them, each {ZOOM}, e.g. 1,1.14"
        )
    return [make_inputs(config, zoom=zoom) for zoom in zooms]


def _registered(name: str) -> Any:
    if name not in AUGMENTATIONS:
        raise AUGMENTATIONS.unknown(name)
    return AUGMENTATIONS[name]


def _kept_shape(before: Batch, after: Any, name: str) -> Batch:
    """Returns what an augmentation of the user's own made of a batch, after a check."""
    found = after.get("image") if isinstance(after, Mapping) else None
    if getattr(found, "shape", None) != before["image"].shape:
        raise InputError(
            f"augmentation {name!r} must return its batch, with images of shape "
            f"{list(before['image'].shape)}"
        )
    return dict(after)


def batch_shapes(size: Any, side: int, task: Labelled) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes and dtypes of a global batch.

    Args:
      size: number of images, or a symbolic dimension.
      side: height and width of the images in pixels.
      task: names the labels.
    """
    shapes = {
        "image": jax.ShapeDtypeStruct((size, side, side, 1), np.uint8),
        "weight": jax.ShapeDtypeStruct((size,), np.float32),
        "draw": jax.ShapeDtypeStruct((size,), np.uint32),
    }
    known = {
        "male": jax.ShapeDtypeStruct((size,), np.int32),
        "mask": jax.ShapeDtypeStruct((size, side, side, 1), np.uint8),
    }
    return shapes | {
        key: known[key]
        if key in known
        else jax.ShapeDtypeStruct((size,), jnp.dtype(task.label_dtypes.get(key, np.float32)))
        for key in task.labels
    }


def padded_batch(
    size: int, images: list[np.ndarray], task: Labelled, labels: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Builds a host batch of `size` images for prediction; padding has weight 0.

    Args:
      size: images per batch.
      images: at most `size` arrays, uint8 [S, S] each, at least one.
      task: names the labels that its step expects.
      labels: known labels, one value per image; others are 0, `male` is -1 (unknown).

    Raises:
      InputError: no images, or more than `size`.
    """
    if not 0 < len(images) <= size:
        raise InputError(f"{len(images)} images do not fit into a batch of {size}")
    shapes = batch_shapes(size, images[0].shape[0], task)
    batch = {key: np.zeros(shape.shape, shape.dtype) for key, shape in shapes.items()}
    batch["image"][: len(images), ..., 0] = np.stack(images)
    batch["draw"] = np.arange(size, dtype=np.uint32)
    if "male" in batch:
        batch["male"][:] = -1
    for key, values in labels.items():
        if key in batch:
            batch[key][: len(images)] = values
    return batch

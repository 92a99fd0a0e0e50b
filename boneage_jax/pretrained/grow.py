"""Starts a large EfficientNet from the weights of a smaller one."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from boneage_jax.errors import InputError
from boneage_jax.models.efficientnet import VARIANTS, stage_repeats


def check_grown(small: str, large: str) -> None:
    """Checks that one EfficientNet can be embedded in another.

    Args:
      small, large: names of the networks.

    Raises:
      InputError: one is no EfficientNet, both are the same, or the first is wider, deeper, or
        excites where the second does not.
    """
    for name in (small, large):
        if name not in VARIANTS:
            raise InputError(
                f"config.model.grown_from={small} for {large}: {name} is no EfficientNet; known "
                f"are {', '.join(VARIANTS)}"
            )
    if small == large:
        raise InputError(f"config.model.grown_from={small} is config.model.name; leave it out")
    one, other = VARIANTS[small], VARIANTS[large]
    blocks = zip(stage_repeats(one), stage_repeats(other), strict=True)
    excites = not one.lite and other.lite
    if one.width > other.width or excites or any(count > most for count, most in blocks):
        raise InputError(
            f"config.model.grown_from={small}: {large} does not hold it; it must be as wide and as "
            "deep, and a Lite network holds none that excites"
        )


def grow(found: Mapping[str, Any], fresh: Mapping[str, Any]) -> dict[str, Any]:
    """Embeds a small EfficientNet in a large one (after Net2Net, Chen et al. 2016, 1511.05641).

    The stages of all variants have the same kernels, strides and expansion, so each layer of the
    small network becomes the first channels of a layer of the large one, which do not read the
    other channels. All else is as in `fresh`: new channels begin at random (in Net2Net as copies),
    new blocks as the identity, since the scale of their last BatchNorm is zero.

    The first features of the large network are then those of the small one, if both have the same
    activation and both or neither squeeze-and-excite. From Lite (ReLU6, no excitation) to B0 ... B7
    (swish) they differ until training has adapted them. All gates begin at 1/2, to which the
    statistics after them are adapted.

    Args:
      found: {'params', 'batch_stats'} of the small network, arrays.
      fresh: the same of the large network, newly initialised.

    Returns:
      float32 NumPy arrays in the structure of `fresh`.

    Raises:
      InputError: the small network has a layer that the large one lacks, or a wider one.
    """
    small, large = flatten_dict(found), flatten_dict(fresh)
    result = {path: np.array(value, np.float32) for path, value in large.items()}
    for path, value in small.items():
        whole = result.get(path)
        if whole is None or any(a > b for a, b in zip(value.shape, whole.shape, strict=True)):
            has = "nothing" if whole is None else list(whole.shape)
            raise InputError(
                f"{'/'.join(path[1:])} is {list(value.shape)} there and {has} in the network to "
                "be trained; a network grows from one that is nowhere wider or deeper"
            )
        whole[..., : value.shape[-1]] = 0.0
        whole[tuple(slice(size) for size in value.shape)] = value
    gates = {path[1] for path in large if path[1].endswith("_se_expand")}
    for gate in gates - {path[1] for path in small}:
        for path, whole in result.items():
            if path[1] == gate:
                whole[...] = 0.0  # sigmoid(0) = 1/2 for every image
            if path[:2] == ("batch_stats", gate.replace("_se_expand", "_project_bn")):
                known = small.get(path, whole[:0]).shape[0]
                whole[:known] *= 0.5 if path[2] == "mean" else 0.25
    return unflatten_dict(result)

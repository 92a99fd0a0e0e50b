"""Maps the weight names of Keras, timm and efficientnet-pytorch to ours."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from boneage_jax.errors import InputError
from boneage_jax.models.efficientnet import VARIANTS, stage_repeats
from boneage_jax.pretrained.weight import Tree, Weight, read_tree

# Last part of the Keras path -> (our collection, our parameter).
_KERAS = {
    "kernel": ("params", "kernel"),
    "depthwise_kernel": ("params", "kernel"),  # Keras 2
    "bias": ("params", "bias"),
    "gamma": ("params", "scale"),
    "beta": ("params", "bias"),
    "moving_mean": ("batch_stats", "mean"),
    "moving_variance": ("batch_stats", "var"),
}

_TIMM = {
    "conv_stem": "stem_conv",
    "bn1": "stem_bn",
    "conv_head": "top_conv",
    "bn2": "top_bn",
    "classifier": "predictions",
}
_TIMM_BLOCK = {
    "conv_pw": "expand_conv",
    "bn1": "expand_bn",
    "conv_dw": "dwconv",
    "bn2": "bn",
    "se.conv_reduce": "se_reduce",
    "se.conv_expand": "se_expand",
    "conv_pwl": "project_conv",
    "bn3": "project_bn",
}
_TIMM_FIRST = {  # blocks of the first stage do not expand
    "conv_dw": "dwconv",
    "bn1": "bn",
    "se.conv_reduce": "se_reduce",
    "se.conv_expand": "se_expand",
    "conv_pw": "project_conv",
    "bn2": "project_bn",
}
_FLAT = {
    "_conv_stem": "stem_conv",
    "_bn0": "stem_bn",
    "_conv_head": "top_conv",
    "_bn1": "top_bn",
    "_fc": "predictions",
}
_FLAT_BLOCK = {
    "_expand_conv": "expand_conv",
    "_bn0": "expand_bn",
    "_depthwise_conv": "dwconv",
    "_bn1": "bn",
    "_se_reduce": "se_reduce",
    "_se_expand": "se_expand",
    "_project_conv": "project_conv",
    "_bn2": "project_bn",
}
_NORM = {
    "weight": ("params", "scale"),
    "bias": ("params", "bias"),
    "running_mean": ("batch_stats", "mean"),
    "running_var": ("batch_stats", "var"),
}


def from_keras(weights: Mapping[str, np.ndarray], like: Any) -> dict[str, Any]:
    """Converts the weights of a `keras.applications` EfficientNet to our variables.

    Args:
      weights: arrays by Keras path, 'LAYER/VARIABLE', as in
        `{w.path: w.numpy() for w in model.weights}`. The weights of Keras's input normalisation
        are skipped.
      like: variables {'params', 'batch_stats'} (or their shapes) of the network to fill.

    Returns:
      Variables with the structure of `like`, float32.

    Raises:
      InputError: a weight is missing, unused, or of the wrong shape.
    """
    lazy = {}
    for path, array in weights.items():
        exact = np.asarray(array, np.float32)
        lazy[path] = Weight(exact.shape, lambda exact=exact: exact)  # type: ignore[misc]
    return read_tree(keras_tree(lazy), like, "Keras")


def keras_tree(weights: Mapping[str, Weight]) -> Tree:
    """Returns the weights of a Keras EfficientNet under our names.

    Args:
      weights: by 'LAYER/VARIABLE'.

    Raises:
      InputError: a variable belongs to no layer of an EfficientNet.
    """
    found: Tree = {"params": {}, "batch_stats": {}}
    for path, weight in weights.items():
        layer, _, variable = path.rpartition("/")
        if layer.startswith("normalization"):
            continue
        if variable not in _KERAS:
            raise InputError(f"Keras weight {path!r} has no place in an EfficientNet")
        collection, name = _KERAS[variable]
        if layer.endswith("dwconv") and len(weight.shape) == 4:  # Keras stores [k, k, C, 1]
            weight = weight.transposed(0, 1, 3, 2)
        found[collection].setdefault(layer, {})[name] = weight
    return found


def torch_layout(names: Mapping[str, Weight]) -> str:
    """Returns 'timm' or 'efficientnet_pytorch', from the name of the stem.

    Raises:
      InputError: the names belong to neither.
    """
    if "conv_stem.weight" in names:
        return "timm"
    if "_conv_stem.weight" in names:
        return "efficientnet_pytorch"
    some = ", ".join(sorted(names)[:3]) or "none"
    raise InputError(
        "holds no EfficientNet of timm or efficientnet-pytorch (no tensor conv_stem.weight or "
        f"_conv_stem.weight; its tensors are {some[:120]} ...); choose a file of that kind"
    )


def torch_tree(weights: Mapping[str, Weight], name: str) -> Tree:
    """Returns the weights of a PyTorch EfficientNet under our names and in our axis order.

    Args:
      weights: by the names of timm, or of the packages efficientnet-pytorch and
        efficientnet-lite-pytorch, which number the blocks consecutively.
      name: the variant, a key of `VARIANTS`.

    Raises:
      InputError: a tensor belongs to no layer of this variant.
    """
    layout = torch_layout(weights)
    repeats = stage_repeats(VARIANTS[name])
    flat = [(stage, repeat) for stage, count in enumerate(repeats) for repeat in range(count)]
    if layout == "efficientnet_pytorch":  # with another count the numbers refer to other blocks
        blocks = sum(bool(re.fullmatch(r"_blocks\.\d+\._bn2\.weight", path)) for path in weights)
        if blocks != len(flat):
            raise InputError(f"has {blocks} blocks, {name} {len(flat)}; is it this variant?")
    found: Tree = {"params": {}, "batch_stats": {}}
    for path, weight in weights.items():
        module, _, variable = path.rpartition(".")
        if variable == "num_batches_tracked":
            continue
        layer = _timm_layer(module) if layout == "timm" else _flat_layer(module, flat)
        if layer is None:
            raise InputError(f"tensor {path!r} has no place in {name}; is it this variant?")
        rank = len(weight.shape)
        if layer.endswith("bn") and variable in _NORM:
            collection, parameter = _NORM[variable]
        elif variable == "bias":
            collection, parameter = "params", "bias"
        elif variable == "weight" and rank == (2 if layer == "predictions" else 4):
            collection, parameter = "params", "kernel"
            # [O, I, k, k] -> [k, k, I, O]; depthwise [C, 1, k, k] -> [k, k, 1, C]; [O, I] -> [I, O]
            weight = weight.transposed(2, 3, 1, 0) if rank == 4 else weight.transposed(1, 0)
        else:
            raise InputError(f"tensor {path!r} {list(weight.shape)} has no place in {name}")
        found[collection].setdefault(layer, {})[parameter] = weight
    return found


def _timm_layer(module: str) -> str | None:
    block = re.fullmatch(r"blocks\.([0-6])\.(\d|1\d)\.(.+)", module)
    if not block:
        return _TIMM.get(module)
    stage, repeat = int(block[1]), int(block[2])
    part = (_TIMM_BLOCK if stage else _TIMM_FIRST).get(block[3])
    return None if part is None else f"block{stage + 1}{chr(ord('a') + repeat)}_{part}"


def _flat_layer(module: str, blocks: list[tuple[int, int]]) -> str | None:
    block = re.fullmatch(r"_blocks\.(\d{1,3})\.(.+)", module)
    if not block:
        return _FLAT.get(module)
    number, part = int(block[1]), _FLAT_BLOCK.get(block[2])
    if part is None or number >= len(blocks):
        return None
    stage, repeat = blocks[number]
    return f"block{stage + 1}{chr(ord('a') + repeat)}_{part}"

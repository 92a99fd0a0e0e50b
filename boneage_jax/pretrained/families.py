"""How the network of a weight file was built: padding, BatchNorm epsilon, input normalisation."""

import json
import re
from pathlib import Path
from typing import Any

from boneage_jax.errors import InputError
from boneage_jax.models.efficientnet import VARIANTS
from boneage_jax.pretrained.keras_file import keras_normalization
from boneage_jax.pretrained.names import torch_layout
from boneage_jax.pretrained.stem import HALF, IMAGENET, LITE, InputNormalization
from boneage_jax.pretrained.weight import Weight

# How the networks of each family were built, as options of `create_model`.
_TENSORFLOW = {"padding": "same", "bn_epsilon": 1e-3}
FAMILIES: dict[str, dict[str, Any]] = {
    "timm": {"padding": "symmetric", "bn_epsilon": 1e-5},
    "timm_tf": _TENSORFLOW,  # timm's tf_efficientnet_*, ported from TensorFlow
    "efficientnet_pytorch": _TENSORFLOW,  # also efficientnet-lite-pytorch
    "keras": _TENSORFLOW,
}
_TIMM_NAME = re.compile(r"(?<![a-z0-9])(tf_)?efficientnet[-_](b\d|lite\d)(?![a-z0-9])", re.I)


def check_family(family: str | None) -> None:
    if family is not None and family not in FAMILIES:
        raise InputError(f"family={family!r} is unknown; choose one of {', '.join(FAMILIES)}")


def family_of(path: Path, weights: dict[str, Weight], kind: str, given: str | None) -> str:
    if kind == "keras":
        found: str | None = "keras"
    elif torch_layout(weights) == "efficientnet_pytorch":
        found = "efficientnet_pytorch"
    else:
        found = None
    if found is None:
        match = timm_name(path)
        found = given or (match and ("timm_tf" if match[1] else "timm"))
        if found is None:
            raise InputError(
                "neither its name nor a config.json tells timm's tf_efficientnet from "
                "efficientnet; add family='timm_tf' or family='timm'"
            )
        if found not in ("timm", "timm_tf"):
            raise InputError(f"is a file of timm, not of family={given!r}; leave family out")
    elif given not in (None, found):
        raise InputError(f"is a file of family {found!r}, not {given!r}; leave family out")
    return found


def timm_name(path: Path) -> re.Match[str] | None:
    """Matches timm's name of the network, in config.json, the file's name or up to four folders."""
    architecture = hub_config(path).get("architecture")
    names = [architecture] if isinstance(architecture, str) else []
    # Not resolved: the hub's cache holds named links to unnamed files.
    names += [path.name, *(parent.name for parent in list(path.absolute().parents)[:4])]
    return next((match for text in names if (match := _TIMM_NAME.search(text))), None)


def hub_config(path: Path) -> dict[str, Any]:
    """Returns the config.json that timm puts beside its weights, or {}."""
    try:
        with (path.parent / "config.json").open("rb") as file:
            config = json.loads(file.read(1_000_000))
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) and "architecture" in config else {}


def normalization_of(
    name: str, path: Path, weights: dict[str, Weight], family: str
) -> InputNormalization:
    if family == "keras":
        return keras_normalization(weights)
    lite = VARIANTS[name].lite
    if family == "efficientnet_pytorch":
        if lite:
            return LITE
        return HALF if path.name.startswith("adv-") else IMAGENET
    known = hub_config(path).get("pretrained_cfg")
    if isinstance(known, dict) and "mean" in known and "std" in known:
        try:
            mean, std = (tuple(float(n) for n in known[key]) for key in ("mean", "std"))
        except (TypeError, ValueError) as error:
            raise InputError(
                f"config.json beside it has no usable mean and std: {error}"
            ) from error
        return InputNormalization(mean, std)
    match = timm_name(path)
    tag = match.string[match.end() :] if match else ""
    special = re.match(r"[._](ap|ra4)(?![a-z0-9])", tag)
    return HALF if (lite and family == "timm_tf") or special else IMAGENET

"""Models by name."""

import dataclasses
import inspect
import numbers
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from boneage_jax.errors import InputError
from boneage_jax.extensions import MODELS, words_of
from boneage_jax.models import efficientnet, unet
from boneage_jax.ranges import CHOICES, RANGES, Range, shown

_FAMILIES: dict[type[nn.Module], tuple[str, ...]] = {
    efficientnet.EfficientNet: tuple(efficientnet.VARIANTS),
    unet.UNet: tuple(unet.VARIANTS),
}
NAMES = tuple(name for names in _FAMILIES.values() for name in names)
UNET_NAMES = tuple(unet.VARIANTS)
_CLASSES = Range(0, 1_000_000)
_IMAGES = Range(0, 10_000_000)


def create_model(name: str, **options: Any) -> nn.Module:
    """Builds a model that is ready to be initialised.

    Args:
      name: efficientnet_b0 ... b7, efficientnet_lite0 ... lite4, unet, unet_wide or unet_10, or a
        name added with `boneage_jax.register_model`.
      **options: attributes of `boneage_jax.models.efficientnet.EfficientNet`, e.g. `num_classes`,
        `dtype`, `padding`, `drop_path_rate`, of `boneage_jax.models.unet.UNet`, or of the
        registered model.

    Raises:
      InputError: an unknown model or option (the message lists the known ones), or a value that
        the network does not accept. Values for registered models are up to them.
    """
    known = options_of(name)
    for option in options:
        if option not in known:
            raise InputError(
                f"unknown option {option!r} of {name}; known are {', '.join(sorted(known))}"
            )
    if name in MODELS:
        try:
            return MODELS[name](**options)
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"model {name!r} fails: {words_of(error)}") from error
    for option, value in options.items():
        _check_option(name, option, value)
    return _family(name)(variant=name, **options)


def options_of(name: str) -> frozenset[str]:
    """Returns the options that `create_model` accepts for a model.

    Raises:
      InputError: an unknown model.
    """
    make = MODELS[name] if isinstance(name, str) and name in MODELS else _family(name)
    if dataclasses.is_dataclass(make):  # every Flax module is one
        names = {field.name for field in dataclasses.fields(make)}
    else:
        names = set(inspect.signature(make).parameters)
    return frozenset(names - {"variant", "parent", "name"})


def _check_option(name: str, option: str, value: Any) -> None:
    """Checks one option of EfficientNet or U-Net.

    Raises:
      InputError: the value is of the wrong type, out of range or unknown.
    """
    problem = ""
    if option in ("bn_momentum", "bn_epsilon", "drop_path_rate", "dropout"):
        found = RANGES[f"model.{option}"]
        if value not in found and not (option == "dropout" and value is None):
            problem = str(found)
    elif option in ("padding", "depthwise"):
        if value not in CHOICES[f"model.{option}"]:
            problem = f"one of {', '.join(CHOICES[f'model.{option}'])}"
    elif option == "num_classes":
        if not isinstance(value, numbers.Integral) or value not in _CLASSES:
            problem = f"a whole number {_CLASSES}"
    elif option in ("constant_channel", "remat", "portable"):
        problem = "" if isinstance(value, bool) else "True or False"
    elif option == "images_per_device":
        if not isinstance(value, numbers.Integral) or value not in _IMAGES:
            problem = f"a whole number {_IMAGES}"
    elif option == "bn_axis_name":
        problem = "" if value is None or isinstance(value, str) else "the name of an axis, or None"
    elif option == "dtype":
        problem = "" if _is_float(value) else "a dtype of floating-point numbers"
    elif option == "frozen":
        layers = {layer for block in efficientnet.layer_names(name).values() for layer in block}
        if not isinstance(value, frozenset) or not value <= layers:
            problem = "a frozenset of layers, see boneage_jax.models.efficientnet.layer_names"
    if problem:
        raise InputError(f"{option}={shown(value)} of {name} must be {problem}")


def _is_float(dtype: Any) -> bool:
    try:
        return dtype is not None and jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        return False


def _family(name: str) -> Any:
    if not isinstance(name, str):
        raise InputError(f"model {name!r} must be a name; known are {', '.join(NAMES)}")
    if name not in NAMES:
        raise MODELS.unknown(name, NAMES)
    return next(family for family, names in _FAMILIES.items() if name in names)

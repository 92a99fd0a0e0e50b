"""Models by name."""

import dataclasses
import inspect
from typing import Any

import flax.linen as nn

from boneage_jax.errors import InputError
from boneage_jax.extensions import MODELS
from boneage_jax.models import efficientnet, unet

_FAMILIES: dict[type[nn.Module], tuple[str, ...]] = {
    efficientnet.EfficientNet: tuple(efficientnet.VARIANTS),
    unet.UNet: tuple(unet.VARIANTS),
}
NAMES = tuple(name for names in _FAMILIES.values() for name in names)
UNET_NAMES = tuple(unet.VARIANTS)


def create_model(name: str, **options: Any) -> nn.Module:
    """Builds a model that is ready to be initialised.

    Args:
      name: efficientnet_b0 ... b7, efficientnet_lite0 ... lite4, unet, unet_wide or unet_10, or a
        name added with `boneage_jax.register_model`.
      **options: attributes of `boneage_jax.models.efficientnet.EfficientNet`, e.g. `num_classes`,
        `dtype`, `padding`, `drop_path_rate`, of `boneage_jax.models.unet.UNet`, or of the
        registered model.

    Raises:
      InputError: an unknown model or option; the message lists the known ones.
    """
    known = options_of(name)
    for option in options:
        if option not in known:
            raise InputError(
                f"unknown option {option!r} of {name}; known are {', '.join(sorted(known))}"
            )
    if name in MODELS:
        return MODELS[name](**options)
    return _family(name)(variant=name, **options)


def options_of(name: str) -> frozenset[str]:
    """Returns the options that `create_model` accepts for a model.

    Raises:
      InputError: an unknown model.
    """
    make = MODELS[name] if name in MODELS else _family(name)
    if dataclasses.is_dataclass(make):  # every Flax module is one
        names = {field.name for field in dataclasses.fields(make)}
    else:
        names = set(inspect.signature(make).parameters)
    return frozenset(names - {"variant", "parent", "name"})


def _family(name: str) -> Any:
    if name not in NAMES:
        raise MODELS.unknown(name, NAMES)
    return next(family for family, names in _FAMILIES.items() if name in names)

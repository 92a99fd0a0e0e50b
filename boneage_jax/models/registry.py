"""Models by name."""

import dataclasses
import difflib
from typing import Any

import flax.linen as nn

from boneage_jax.errors import InputError
from boneage_jax.models import efficientnet, unet

_FAMILIES: dict[type[nn.Module], tuple[str, ...]] = {
    efficientnet.EfficientNet: tuple(efficientnet.VARIANTS),
    unet.UNet: tuple(unet.VARIANTS),
}
NAMES = tuple(name for names in _FAMILIES.values() for name in names)
UNET_NAMES = tuple(unet.VARIANTS)


def create_model(name: str, **options: Any) -> nn.Module:
    """A model that is ready to be initialised.

    Args:
      name: efficientnet_b0 ... b7, efficientnet_lite0 ... lite4, unet, unet_wide or unet_10.
      **options: attributes of `boneage_jax.models.efficientnet.EfficientNet`, e.g. `num_classes`,
        `dtype`, `padding`, `drop_path_rate`, or of `boneage_jax.models.unet.UNet`.

    Raises:
      InputError: unknown model or option; the message lists the known ones.
    """
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"unknown model {name!r}: {hint}known are {', '.join(NAMES)}")
    family: Any = next(family for family, names in _FAMILIES.items() if name in names)
    fields = {field.name for field in dataclasses.fields(family)}
    known = fields - {"variant", "parent", "name"}
    for option in options:
        if option not in known:
            raise InputError(
                f"unknown option {option!r} of {name}; known are {', '.join(sorted(known))}"
            )
    return family(variant=name, **options)

"""Models by name."""

import dataclasses
import difflib
from typing import Any

import flax.linen as nn

from boneage_jax.errors import InputError
from boneage_jax.models.efficientnet import VARIANTS, EfficientNet

NAMES = tuple(VARIANTS)


def create_model(name: str, **options: Any) -> nn.Module:
    """A model that is ready to be initialised.

    Args:
      name: efficientnet_b0 ... b7 or efficientnet_lite0 ... lite4.
      **options: attributes of `boneage_jax.models.efficientnet.EfficientNet`, e.g. `num_classes`,
        `dtype`, `padding`, `drop_path_rate`.

    Raises:
      InputError: unknown model or option; the message lists the known ones.
    """
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"unknown model {name!r}: {hint}known are {', '.join(NAMES)}")
    fields = {field.name for field in dataclasses.fields(EfficientNet)}
    known = fields - {"variant", "parent", "name"}
    for option in options:
        if option not in known:
            raise InputError(
                f"unknown option {option!r} of {name}; known are {', '.join(sorted(known))}"
            )
    return EfficientNet(variant=name, **options)

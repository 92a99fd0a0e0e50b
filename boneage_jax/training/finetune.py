"""Which parts of a network are trained, and how fast: `config.finetune`.

The heads, all that is outside the backbone, always train. What is frozen takes part in no backward
pass: it is no argument of the function that is differentiated, has no optimizer state, no moving
average and no decay, and its BatchNorm keeps to the statistics it came with.
"""

import dataclasses
from typing import Any

import jax
from ml_collections import ConfigDict

from boneage_jax.config import base_config
from boneage_jax.errors import InputError
from boneage_jax.models.efficientnet import VARIANTS, layer_names, layer_of

Path = tuple[str, ...]
_BACKBONE = "backbone"


@dataclasses.dataclass(frozen=True)
class Trainable:
    """The trained part of a network.

    Attributes:
      blocks: of the backbone, from the input, each with its layers; empty for a network without a
        backbone, all of which trains.
      frozen: layers of the backbone that are not trained.
    """

    blocks: dict[str, list[str]]
    frozen: frozenset[str]

    @property
    def all(self) -> bool:
        """Whether nothing is frozen."""
        return not self.frozen

    def heads_only(self) -> "Trainable":
        """The same network with its whole backbone frozen."""
        layers = [layer for block in self.blocks.values() for layer in block]
        return Trainable(self.blocks, frozenset(layers))

    def __call__(self, path: Path) -> bool:
        """Whether the parameter at this path of keys is trained."""
        return path[0] != _BACKBONE or layer_of(path[1]) not in self.frozen

    def depth(self, path: Path) -> int:
        """Blocks between a parameter and the heads: 0 for the heads, 1 for the last block."""
        if path[0] != _BACKBONE:
            return 0
        layer = layer_of(path[1])
        names = list(self.blocks)
        block = next(name for name in names if layer in self.blocks[name])
        return len(names) - names.index(block)


def trainable_part(config: ConfigDict) -> Trainable:
    """What `config.finetune` leaves to train.

    Args:
      config: a checked config.

    Raises:
      InputError: more blocks or layers than the network has, or a network that has no backbone.
    """
    name, settings = config.model.name, config.finetune
    if name not in VARIANTS:
        return Trainable({}, frozenset())
    blocks = layer_names(name)
    layers = [layer for block in blocks.values() for layer in block]
    for key, most in (("last_blocks", len(blocks)), ("last_layers", len(layers))):
        if not -1 <= settings[key] <= most:
            raise InputError(
                f"config.finetune.{key}={settings[key]} must lie in 0..{most} for {name}, or be -1 "
                "for all"
            )
    if settings.last_blocks >= 0:
        trained = [
            x for block in list(blocks)[len(blocks) - settings.last_blocks :] for x in blocks[block]
        ]
    elif settings.last_layers >= 0:
        trained = layers[len(layers) - settings.last_layers :]
    else:
        trained = layers
    return Trainable(blocks, frozenset(layers) - frozenset(trained))


def rate_factors(params: Any, part: Trainable, decay: float) -> Any:
    """A factor of the learning rate for each parameter: decay ** its blocks from the heads.

    Howard & Ruder 2018, arXiv:1801.06146 (discriminative fine-tuning); per block as in Bao et al.
    2021, arXiv:2106.08254.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: decay ** part.depth(tuple(key.key for key in path)), params
    )


def in_backbone(params: Any) -> Any:
    """True for each parameter of the backbone, False for those of the heads."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[0].key == _BACKBONE, params)


def pretraining_part(config: ConfigDict) -> ConfigDict:
    """The config with the whole network in training from start to end, as pre-training needs it."""
    whole = ConfigDict(config.to_dict())
    whole.finetune = base_config().finetune
    whole.progressive = base_config().progressive
    return whole


def check_finetune(config: ConfigDict) -> None:
    """Raises InputError where a network without a backbone is to be fine-tuned in part."""
    changed = config.finetune.to_dict() != base_config().finetune.to_dict()
    if changed and config.task != "bone_age":
        raise InputError(f"config.finetune is for bone_age, not for {config.task}; leave it out")
    if changed and config.model.name not in VARIANTS:
        raise InputError(
            f"config.finetune knows the layers of EfficientNet, not those of {config.model.name}; "
            "leave it out"
        )

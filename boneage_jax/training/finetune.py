"""Selects which parameters are trained, and at what learning rate: `config.finetune`.

The heads, i.e. everything outside the backbone, always train. Frozen layers take no part in the
backward pass: they are not among the differentiated arguments and have no optimizer state, no
moving average and no weight decay, and their BatchNorm keeps its initial running statistics.
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
      blocks: layers of each block of the backbone, ordered from the input; empty for a network
        without a backbone, which trains as a whole.
      frozen: layers of the backbone that are not trained.
    """

    blocks: dict[str, list[str]]
    frozen: frozenset[str]

    @property
    def all(self) -> bool:
        """Whether nothing is frozen."""
        return not self.frozen

    def heads_only(self) -> "Trainable":
        """Returns a copy with the whole backbone frozen."""
        layers = [layer for block in self.blocks.values() for layer in block]
        return Trainable(self.blocks, frozenset(layers))

    def __call__(self, path: Path) -> bool:
        """Returns whether the parameter at this path of keys is trained."""
        return path[0] != _BACKBONE or layer_of(path[1]) not in self.frozen

    def depth(self, path: Path) -> int:
        """Returns the distance to the heads in blocks: 0 for the heads, 1 for the last block."""
        if path[0] != _BACKBONE:
            return 0
        layer = layer_of(path[1])
        names = list(self.blocks)
        block = next(name for name in names if layer in self.blocks[name])
        return len(names) - names.index(block)


def trainable_part(config: ConfigDict) -> Trainable:
    """Returns the part of the network that `config.finetune` leaves trainable.

    A network other than an EfficientNet trains as a whole.

    Args:
      config: checked config.

    Raises:
      InputError: `config.finetune` asks for more blocks or layers than the network has.
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
    """Returns one learning-rate factor per parameter: decay ** (blocks from the heads).

    Discriminative fine-tuning, Howard & Ruder 2018, arXiv:1801.06146; per block as in Bao et al.
    2021, arXiv:2106.08254.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: decay ** part.depth(tuple(key.key for key in path)), params
    )


def in_backbone(params: Any) -> Any:
    """Returns a tree of booleans: True for backbone parameters, False for the heads."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[0].key == _BACKBONE, params)


def pretraining_part(config: ConfigDict) -> ConfigDict:
    """Returns the config with the whole network trained throughout, as pre-training requires."""
    whole = ConfigDict(config.to_dict())
    whole.finetune = base_config().finetune
    whole.progressive = base_config().progressive
    return whole


def check_finetune(config: ConfigDict) -> None:
    """Checks that task and network support `config.finetune`, unless it is left at its defaults.

    Raises:
      InputError: a task other than bone_age, or a network other than an EfficientNet.
    """
    changed = config.finetune.to_dict() != base_config().finetune.to_dict()
    if changed and config.task != "bone_age":
        raise InputError(f"config.finetune is for bone_age, not for {config.task}; leave it out")
    if changed and config.model.name not in VARIANTS:
        raise InputError(
            f"config.finetune knows the layers of EfficientNet, not those of {config.model.name}; "
            "leave it out"
        )

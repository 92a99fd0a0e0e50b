"""Arms for what a network begins from on the full training set, at equal FLOPs.

python -m boneage_jax.sweep --config=cls:rsna10t --arms=configs/sweeps/transfer_full.py \
  --config.data.raw_dir=DIR --config.view_steps=0 --seeds=2 --output=FOLDER

Frozen layers cost only their forward pass, so the same budget pays for more steps. Pre-training on
phantoms, which are square, is a run of its own (docs/recipes.md).
"""

from typing import Any


def get_arms() -> dict[str, dict[str, Any]]:
    """Returns the overrides of the recipe by arm; the first trains all layers from ImageNet."""
    return {
        "imagenet-all": {},
        "imagenet-last-12-blocks": {"finetune.last_blocks": 12},
        "imagenet-last-6-blocks": {"finetune.last_blocks": 6},
        "imagenet-last-2-blocks": {"finetune.last_blocks": 2},
        "imagenet-heads": {"finetune.last_blocks": 0},
        "random-all": {"model.pretrained": ""},
    }

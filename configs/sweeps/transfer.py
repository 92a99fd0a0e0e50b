"""Arms for the initial weights and for how much of the network is fine-tuned, at equal FLOPs.

python -m boneage_jax.sweep --config=configs/cls.py:subset --arms=configs/sweeps/transfer.py \
  --config.data.raw_dir=DIR --config.member_flops=0 --config.data.config=128 --budgets=5e12 \
  --config.data.test_fraction=0.11 --config.data.validation_fraction=0.25 --output=FOLDER

Frozen layers cost only their forward pass, so the same budget pays for more steps.
"""

from typing import Any


def get_arms() -> dict[str, dict[str, Any]]:
    """Returns the overrides of the recipe by arm; the first trains all layers from ImageNet."""
    phantom = {"model.pretrained": "", "pretrain.data": "hand_phantom/128", "pretrain.steps": 100}
    return {
        "imagenet-all": {},
        "imagenet-last-12-blocks": {"finetune.last_blocks": 12},
        "imagenet-last-6-blocks": {"finetune.last_blocks": 6},
        "imagenet-last-2-blocks": {"finetune.last_blocks": 2},
        "imagenet-heads": {"finetune.last_blocks": 0},
        "phantom-all": phantom,
        "phantom-last-6-blocks": phantom | {"finetune.last_blocks": 6},
        "random-all": {"model.pretrained": ""},
    }

"""Bone age in months and sex from hand radiographs, with as little compute as possible.

Public names are imported on first use, so `import boneage_jax` is cheap and data-preparation
processes never load JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "create_model": "boneage_jax.models.registry",
    "train": "boneage_jax.training.train",
    "load_predictor": "boneage_jax.inference.predictor",
    "load_segmenter": "boneage_jax.inference.segmenter",
    "load_recipe": "boneage_jax.cli",
    "load_pretrained": "boneage_jax.pretrained.load_pretrained",
    "pretrained_options": "boneage_jax.pretrained.load_pretrained",
    "source_normalization": "boneage_jax.pretrained.load_pretrained",
    "count_flops": "boneage_jax.models.flops",
    "load_extensions": "boneage_jax.extensions",
    "register_augmentation": "boneage_jax.extensions",
    "register_config": "boneage_jax.extensions",
    "register_dataset": "boneage_jax.extensions",
    "register_model": "boneage_jax.extensions",
    "register_task": "boneage_jax.extensions",
    "InputError": "boneage_jax.errors",
}
__all__ = [
    "InputError",
    "count_flops",
    "create_model",
    "load_extensions",
    "load_predictor",
    "load_pretrained",
    "load_recipe",
    "load_segmenter",
    "pretrained_options",
    "register_augmentation",
    "register_config",
    "register_dataset",
    "register_model",
    "register_task",
    "source_normalization",
    "train",
]

if TYPE_CHECKING:
    from boneage_jax.cli import load_recipe
    from boneage_jax.errors import InputError
    from boneage_jax.extensions import (
        load_extensions,
        register_augmentation,
        register_config,
        register_dataset,
        register_model,
        register_task,
    )
    from boneage_jax.inference.predictor import load_predictor
    from boneage_jax.inference.segmenter import load_segmenter
    from boneage_jax.models.flops import count_flops
    from boneage_jax.models.registry import create_model
    from boneage_jax.pretrained.load_pretrained import (
        load_pretrained,
        pretrained_options,
        source_normalization,
    )
    from boneage_jax.training.train import train


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'boneage_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)

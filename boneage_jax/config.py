"""All config keys of a run with their defaults, and the checks that a config must pass.

A recipe in `configs/` starts from `base_config()` and states only what it changes.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from boneage_jax.errors import InputError
from boneage_jax.extensions import CONFIG_SECTIONS, TASKS
from boneage_jax.json_file import read_json
from boneage_jax.ranges import RANGES, check_value, shown

# Splits that are evaluated only with --unlock_test, and never trained on or chosen by.
LOCKED = ("test", "locked")


def base_config() -> ConfigDict:
    """Returns the config that recipes start from. Durations are in steps unless noted otherwise."""
    config = ConfigDict()
    config.task = "bone_age"  # bone_age | hand_mask, or a registered task
    config.seed = 0  # of the initial parameters, the order of the images and all random draws
    config.parallel = "jit"  # jit | pmap: see boneage_jax/runtime/parallel.py
    config.batch_size = 32  # images per step over all devices
    config.eval_batch_size = 64  # images per step of evaluation and prediction
    config.accumulate = 1  # micro-batches per step
    config.epochs = 10.0  # passes over the training split
    config.steps = 0  # number of steps instead of epochs; 0: use epochs
    config.budget_flops = 0.0  # training FLOPs instead of epochs, masks and pre-training included
    config.members = 1  # networks trained from different seeds, whose predictions are averaged
    config.member_flops = 0.0  # FLOPs per member; if > 0, members = budget_flops // member_flops
    config.evaluate_every = 1.0  # epochs between evaluations on the validation split
    config.checkpoint_every = 0  # steps between additional checkpoints; each evaluation saves one
    config.log_every = 10  # steps between lines of metrics.jsonl
    config.max_seconds = 0.0  # save and exit with status 75 after this time; 0: no limit
    config.stall_seconds = 600.0  # without progress before exiting with status 75; 0: no limit
    config.nonfinite = "skip"  # skip | rollback | stop: on a non-finite loss or gradient
    config.nonfinite_limit = 10  # non-finite steps in a row (skip), or rollbacks, before stopping
    config.ema_decay = 0.0  # decay of the moving average of the parameters; 0: off
    config.test_flips = False  # average predictions over the image and its mirror image
    config.test_zooms = ""  # magnifications to average over, e.g. 1,1.14; empty: 1 alone
    config.test_views = 0  # number of augmented copies to average over as well
    config.test_atlas = 0.0  # months, deviation of the weights of reader ages near an age; 0: off
    config.view_steps = 750  # at most, of the network that puts radiographs upright; 0: none
    config.bias_correction = "none"  # none | shift | line | ridge: fitted on validation ages
    config.select = "latest"  # latest | best: the checkpoint that is reported and predicts
    config.compile_cache = True  # keep compiled programs for the next start on this machine
    config.init_from = ""  # workdir or published network to take the initial network from

    config.pretrain = ConfigDict()  # pre-training on other data, in WORKDIR/pretrain
    config.pretrain.data = ""  # NAME/CONFIG of a builder that needs no raw data; empty: none
    config.pretrain.steps = 0  # steps of the pre-training

    config.finetune = ConfigDict()  # which parts of the network train, see docs/finetuning.md
    config.finetune.last_blocks = -1  # train only this number of last backbone blocks; -1: all
    config.finetune.last_layers = -1  # train only this number of last layers; -1: all
    config.finetune.head_first = 0.0  # initial fraction of the run that trains only the heads
    config.finetune.layer_decay = 1.0  # learning rate of a block relative to the next block
    config.finetune.backbone_weight_decay = -1.0  # -1: same as optimizer.weight_decay

    config.progressive = ConfigDict()  # progressive resizing: smaller images first
    config.progressive.sizes = ""  # heights in pixels, e.g. 128,192; the last is the network's
    config.progressive.fractions = ""  # fraction of the steps at each size, e.g. 0.5,0.5

    config.data = ConfigDict()
    config.data.name = "hand_phantom"  # a builder of tfds_rsna
    config.data.config = "96"  # the builder's config: the stored size in pixels
    config.data.fit = "pad"  # pad | stretch: how a radiograph fills its stored square
    config.data.height = 0  # pixels that the network reads, made from the stored ones; 0: all
    config.data.width = 0  # likewise
    config.data.raw_dir = ""  # folder of the raw data; prepared from it if needed
    config.data.data_dir = ""  # folder of prepared data; TFDS_DATA_DIR or TFDS's default if empty
    config.data.options = ConfigDict()  # options of the builder, e.g. age_column
    config.data.train_split = "train"  # the split to train on
    config.data.eval_split = "validation"  # the split to evaluate on while training
    config.data.validation_fraction = 0.11  # cut from train if the data has no validation split
    config.data.official_splits = True  # False: cut all splits from train
    config.data.test_fraction = 0.0  # cut from train first if the data has no test split
    config.data.locked_fraction = 0.0  # cut from train last, as the split `locked`
    config.data.split_seed = 0  # seed of the splits that are cut
    config.data.threads = 4  # threads that read batches
    config.data.buffer = 2  # batches prefetched ahead of the step
    config.data.uncompressed = True  # keep an uncompressed copy, which reads many times faster
    config.data.masks = ""  # folder of hand masks, or workdir of a U-Net: removes the background
    config.data.mask_mode = ""  # crop (if empty) | upright | multiply, see data/masks.py

    config.augment = ConfigDict()  # see boneage_jax/data/augment.py for units
    config.augment.flip = 0.5  # probability of a mirror image
    config.augment.rotate = 0.0  # degrees, drawn from ±rotate
    config.augment.translate = 0.0  # fraction of width and height
    config.augment.zoom = 0.0  # magnification 1 ± zoom
    config.augment.shear = 0.0  # degrees
    config.augment.brightness = 0.0  # added, as a fraction of the full range
    config.augment.contrast = 0.0  # deviation from the mean is multiplied by 1 ± contrast
    config.augment.gamma = 0.0  # exponent 1 ± gamma
    config.augment.invert = 0.0  # probability of swapping black and white
    config.augment.shading = 0.0  # smooth field added, as a fraction of the full range
    config.augment.blur = 0.0  # part of the image that is smoothed, drawn from 0..blur
    config.augment.noise = 0.0  # standard deviation from 0..noise, as a fraction of the full range
    config.augment.noise_probability = 1.0  # of an image getting noise
    config.augment.jpeg = 0.0  # probability of compression as JPEG
    config.augment.jpeg_quality = 20.0  # its lowest quality, drawn from jpeg_quality..80
    config.augment.frame = 0.0  # probability of a white frame
    config.augment.fill = "border"  # grey value outside the image: border | 0
    config.augment.resample = "auto"  # auto | matmul | gather
    config.augment.extra = ""  # names of registered augmentations, see docs/extending.md
    config.mix = ConfigDict()  # see boneage_jax/data/mix.py
    config.mix.probability = 1.0  # probability that a pair of images is mixed
    config.mix.mixup = 0.0  # alpha of MixUp's Beta distribution, 0 for none
    config.mix.cutmix = 0.0  # alpha of CutMix's Beta distribution, 0 for none
    config.normalize = "zscore"  # zscore | percentile | equalize | none, per image

    config.model = ConfigDict()
    config.model.name = "efficientnet_b4"  # see boneage_jax/models/registry.py
    config.model.pretrained = ""  # weights of the backbone, see docs/pretrained.md
    config.model.grown_from = ""  # smaller network that model.pretrained or init_from holds, if so
    config.model.options = ConfigDict()  # options of a registered model
    config.model.dtype = "float32"  # compute dtype; parameters are always float32
    config.model.drop_path_rate = 0.2  # stochastic depth rate of the last block
    config.model.bn_momentum = 0.99  # momentum of BatchNorm's moving statistics
    config.model.bn_epsilon = 1e-3  # TensorFlow's; PyTorch's is 1e-5
    config.model.bn_sync = True  # BatchNorm statistics over all devices
    config.model.padding = "same"  # same (TensorFlow) | symmetric (PyTorch)
    config.model.depthwise = "auto"  # auto | lax | shift | fused | cudnn
    config.model.remat = False  # EfficientNet: recompute activations inside blocks
    config.model.dropout = 0.2  # dropout rate before the heads
    config.model.hidden = 0  # width of a dense layer before the age output; 0: none
    config.model.sex_input = False  # feed the sex to the age head

    config.loss = ConfigDict()
    config.loss.age = "l1"  # l1 | huber | mse on the standardised age | distribution over age bins
    config.loss.standardize = True  # ages as z-scores; False: in months
    config.loss.bins = 80  # number of bins of a distribution, over 0..240 months
    config.loss.sigma = 10.0  # months, width of a label's distribution
    config.loss.distribution_weight = 1.0  # weight of the divergence, added to l1 on the mean
    config.loss.sex_weight = 0.1  # weight of the sex head's cross-entropy
    config.loss.dice_weight = 1.0  # weight of soft Dice, added to the cross-entropy of hand masks

    config.optimizer = ConfigDict()
    config.optimizer.name = "adamw"  # adam | adamw | sgd | rmsprop | lion
    config.optimizer.learning_rate = 1e-3  # the peak of the schedule
    config.optimizer.reference_batch = 0  # batch size the rate is meant for; 0: no scaling
    config.optimizer.batch_scaling = "linear"  # linear | sqrt, if reference_batch is given
    config.optimizer.schedule = "cosine"  # constant | cosine | one_cycle
    config.optimizer.warmup = 0.05  # fraction of the run spent on warm-up
    config.optimizer.weight_decay = 0.05  # decoupled, of kernels only
    config.optimizer.clip_norm = 1.0  # maximum global norm of the gradients; 0: no clipping
    config.optimizer.beta1 = 0.9  # decay of the mean gradient; momentum for sgd and rmsprop
    config.optimizer.beta2 = 0.999  # decay of the mean squared gradient

    for section, (defaults, _) in CONFIG_SECTIONS.items():
        if section in config:
            raise InputError(f"config section {section!r} is one of boneage_jax; name another")
        config[section] = ConfigDict(defaults)
    return config


def check_config(config: ConfigDict | Mapping[str, Any]) -> ConfigDict:
    """Checks a config and returns a locked copy of it.

    The copy has exactly the known keys, with values in range, see `boneage_jax.ranges`.

    Args:
      config: a config, or a dict as its `to_dict` returns.

    Raises:
      InputError: names the first key that is unknown, missing, of the wrong type or out of range.
    """
    config = _as_config(config)
    known, given = dict(flat_keys(base_config())), dict(flat_keys(config))
    for key in given:
        if key not in known and not key.startswith(("data.options.", "model.options.")):
            if key.startswith("bench."):
                raise InputError("the section config.bench is for python -m boneage_jax.benchmark")
            raise InputError(
                f"unknown config key {key!r}; see boneage_jax/config.py for all keys (one of your "
                "own is known once its file is given, --extensions=FILE.py)"
            )
    for key, default in known.items():
        if key not in given:
            raise InputError(f"config key {key!r} is missing; start from base_config()")
        check_type(key, given[key], default)
        check_value(key, given[key])
    _check_together(given)
    for section, (_, check) in CONFIG_SECTIONS.items():
        if check is not None:
            _check_section(section, check, config[section])
    values = config.to_dict()
    for outer in ("data", "model"):
        values[outer]["options"] = _as_json(f"{outer}.options", values[outer]["options"])
    return ConfigDict(values).lock()


def check_type(key: str, value: Any, default: Any) -> None:
    """Checks that a value has the type of its default; an int may stand for a float.

    Raises:
      InputError: another type, a number that is not finite, or a text with a NUL character.
    """
    whole = isinstance(default, float) and type(value) is int
    if type(value) is not type(default) and not whole:
        named = callable(value) and key in ("model.name", "task")
        hint = f"; boneage_jax.register_{key.partition('.')[0]} gives it a name" if named else ""
        raise InputError(
            f"config.{key}={shown(value)} must be {type(default).__name__}, as {default!r} is{hint}"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"config.{key}={shown(value)} must be a finite number")
    if isinstance(value, str) and "\0" in value:
        raise InputError(f"config.{key}={shown(value)} must be text without NUL characters")


def _check_section(section: str, check: Any, values: ConfigDict) -> None:
    try:
        check(values)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"the check of config section {section!r} failed: {type(error).__name__}: {error}"
        ) from error


def _as_config(config: Any) -> ConfigDict:
    if not isinstance(config, ConfigDict | Mapping):
        raise InputError(
            f"config={shown(config)} must be a ConfigDict, e.g. of "
            "boneage_jax.load_recipe('cls'), or its dict"
        )
    try:
        copy = ConfigDict(dict(config.items()))
        for _ in flat_keys(copy):  # fails for a config that holds itself
            pass
        return copy
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(f"config cannot be read: {error}; start from base_config()") from error


def _check_together(given: dict[str, Any]) -> None:
    """Checks what depends on several keys."""
    if given["finetune.last_blocks"] >= 0 and given["finetune.last_layers"] >= 0:
        raise InputError("config.finetune.last_blocks and .last_layers exclude each other")
    if given["task"] not in ("bone_age", "hand_mask") and given["task"] not in TASKS:
        raise TASKS.unknown(given["task"], ("bone_age", "hand_mask"))
    if given["parallel"] == "jit" and not given["model.bn_sync"]:
        raise InputError(
            "config.model.bn_sync=False needs config.parallel=pmap: jit sees one global batch"
        )
    if given["steps"] and given["budget_flops"]:
        raise InputError("config.steps and config.budget_flops exclude each other; leave one at 0")
    if bool(given["pretrain.data"]) != bool(given["pretrain.steps"]):
        raise InputError("config.pretrain.data and config.pretrain.steps go together")
    if given["init_from"] and given["budget_flops"]:
        raise InputError(
            "config.budget_flops does not know what init_from has spent; give config.steps"
        )
    _check_members(given)
    for key in ("data.train_split", "data.eval_split"):
        _require(bool(given[key]), key, given[key], "the name of a split")
        _require(
            given[key] not in LOCKED,
            key,
            given[key],
            f"another split: the {given[key]} split is locked",
        )
    _require(bool(given["data.name"]), "data.name", "", "the name of a data set")
    starts = [key for key in ("pretrain.data", "init_from", "model.pretrained") if given[key]]
    if len(starts) > 1:
        raise InputError(f"config.{starts[0]} and config.{starts[1]} exclude each other")
    if given["task"] == "bone_age" and given["data.train_split"] == given["data.eval_split"]:
        raise InputError(
            f"config.data.eval_split={given['data.eval_split']!r} is data.train_split too, and "
            "errors on images of training are no measure of intervals; name another"
        )
    if given["task"] != "bone_age":
        for key in (
            *("data.height", "test_zooms", "test_views", "test_atlas", "mix.mixup", "mix.cutmix"),
            *("model.remat", "member_flops"),
        ):
            _require(not given[key], key, given[key], f"off for config.task={given['task']}")
        _require(given["members"] == 1, "members", given["members"], "1 for hand masks")
    _require(
        bool(given["data.height"]) == bool(given["data.width"]),
        *("data.height", given["data.height"], "given together with data.width"),
    )
    if given["model.pretrained"] and given["task"] != "bone_age":
        raise InputError("config.model.pretrained is for bone_age; start a U-Net from init_from")
    if given["model.grown_from"]:
        _check_grown(given)


def _check_grown(given: dict[str, Any]) -> None:
    if given["task"] != "bone_age":
        raise InputError("config.model.grown_from is for bone_age")
    if not (given["init_from"] or given["model.pretrained"]):
        raise InputError(
            "config.model.grown_from needs the weights of that network: config.model.pretrained or "
            "config.init_from"
        )
    for key in ("finetune.last_blocks", "finetune.last_layers"):
        _require(
            given[key] < 0,
            *(key, given[key], "-1 with config.model.grown_from: what is new must be trained"),
        )


def _check_members(given: dict[str, Any]) -> None:
    each, count = given["member_flops"], given["members"]
    if each and count != 1:
        raise InputError("config.members and config.member_flops exclude each other")
    if each and given["budget_flops"]:
        count = max(int(given["budget_flops"] // each), 1)
        if count not in RANGES["members"]:
            raise InputError(
                f"config.budget_flops // config.member_flops = {count} networks, which must be "
                f"{RANGES['members']}"
            )
    # The seeds of the members are seed * members + 0, 1, ...
    if count > 1 and (given["seed"] + 1) * count - 1 not in RANGES["seed"]:
        highest = int(RANGES["seed"].high + 1) // count - 1
        raise InputError(
            f"config.seed={given['seed']} must be at most {highest} for {count} members"
        )


def _as_json(key: str, value: Any) -> Any:
    """Returns the value as it is read back from config.json, so that a restart compares equal."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"config.{key}={shown(value)} cannot be stored as JSON: {error}"
        ) from error


def save_config(path: Path, config: ConfigDict) -> None:
    """Writes a config as JSON."""
    path.write_text(json.dumps(config.to_dict(), indent=2) + "\n")


def load_config(path: Path) -> ConfigDict:
    """Reads a config written by `save_config`; keys added since then take their defaults.

    Raises:
      InputError: the file does not exist or is not a JSON object.
    """
    try:
        values = read_json(path)
    except FileNotFoundError:
        raise InputError(
            f"{path.parent} holds no run: {path.name} is missing; give the workdir of a training"
        ) from None
    if not isinstance(values, dict):
        raise InputError(f"{path} is not a config: expected a JSON object")
    config = base_config()
    try:
        for key, value in values.items():
            if isinstance(value, dict) and isinstance(config.get(key), ConfigDict):
                config[key].update(value)
            else:
                config[key] = value
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise InputError(f"{path} is damaged: {error}") from error
    return config


def flat_keys(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields each key of a config, sections before dots, and its value."""
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from flat_keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _require(holds: bool, key: str, value: Any, wanted: str) -> None:
    if not holds:
        raise InputError(f"config.{key}={shown(value)} must be {wanted}")

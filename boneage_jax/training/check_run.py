"""Checks of a training before its data are prepared."""

from collections.abc import Sequence

import jax
from ml_collections import ConfigDict

from boneage_jax.config import check_config, load_config
from boneage_jax.data.info import DataInfo
from boneage_jax.errors import InputError
from boneage_jax.extensions import DATASETS, MODELS, TASKS, words_of
from boneage_jax.pretrained.load_pretrained import pretrained_options
from boneage_jax.ranges import RANGES
from boneage_jax.storage.bucket import open_workdir
from boneage_jax.storage.layout import CONFIG
from boneage_jax.training.run import Run, build_run
from tfds_rsna.builders import find_builder


def check_before_data(
    config: ConfigDict, devices: Sequence[jax.Device] | None = None, *, begun: bool
) -> None:
    """Builds the run of a config on made-up data, so that a wrong value is refused at once.

    Args:
      config: checked config.
      devices: devices to run on, all by default.
      begun: the run has a checkpoint, so it starts from no other weights.

    Raises:
      InputError: see `build_run`; an unknown data set; the weights to start from are not there or
        do not fit; or a network or task of the user's own fails.
    """
    find_builder(f"{config.data.name}/{config.data.config}")
    if config.pretrain.data:
        find_builder(config.pretrain.data)
    rough = ConfigDict(config.to_dict())
    # FLOPs per step need the real image size.
    rough.budget_flops, rough.steps, rough.member_flops = 0.0, config.steps or 100, 0.0
    size = config.data.config.partition("-")[0]
    known = size.isdecimal() and config.data.name not in DATASETS  # whose names may say anything
    if not known:
        size = config.progressive.sizes.rpartition(",")[2].strip()
    stored = int(size) if size.isdecimal() and int(size) in RANGES["bench.image_size"] else 64
    run = build_run(check_config(rough), DataInfo(stored, 1000, 120.0, 40.0), devices)
    if known and (config.model.name in MODELS or config.task in TASKS):
        _check_own(run)
    if not begun:
        _check_start(config)


def _check_own(run: Run) -> None:
    """Traces the train step of a network or task that the user has registered."""
    try:
        _ = run.train_flops
    except InputError:
        raise
    except Exception as error:  # of the user's code, or of JAX for what it returns
        name = f"config.model.name={run.config.model.name} with config.task={run.config.task}"
        raise InputError(f"{name} fails: {words_of(error)}") from error


def _check_start(config: ConfigDict) -> None:
    if config.init_from:
        other = load_config(open_workdir(config.init_from) / CONFIG)
        if other.task != config.task:
            raise InputError(
                f"config.init_from={config.init_from} holds a run of task {other.task!r}, not "
                f"{config.task!r}"
            )
    # What the hub holds is fetched after the data are known to be there.
    if not config.model.pretrained.startswith("hf:"):
        check_pretrained(config)


def check_pretrained(config: ConfigDict) -> None:
    """Checks that the network of a config has the options that its pretrained weights need.

    Raises:
      InputError: the weights cannot be read, belong to another network, or were made with a
        padding or BatchNorm epsilon that differs from the config.
    """
    model = config.model
    if not model.pretrained or config.pretrain.data or config.init_from:
        return
    options = pretrained_options(model.name, model.pretrained)
    wrong = {key: value for key, value in options.items() if model[key] != value}
    if wrong:
        flags = " ".join(f"--config.model.{key}={value}" for key, value in wrong.items())
        raise InputError(f"config.model.pretrained={model.pretrained} needs {flags}")

"""Checks of a training before its data are prepared."""

from collections.abc import Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from boneage_jax.config import check_config
from boneage_jax.data.info import DataInfo
from boneage_jax.data.inputs import make_inputs
from boneage_jax.datasets import check_training_data
from boneage_jax.errors import InputError
from boneage_jax.extensions import MODELS, TASKS, words_of
from boneage_jax.inference.load_trained import described_network
from boneage_jax.pretrained.load_pretrained import check_weights, pretrained_options
from boneage_jax.pretrained.source import as_named
from boneage_jax.storage.layout import is_workdir
from boneage_jax.storage.shipped import open_network
from boneage_jax.training.initialize import check_same_shapes
from boneage_jax.training.run import Run, build_run
from tfds_rsna.builders import is_prepared
from tfds_rsna.find_builder import find_builder, needs_raw_data


def check_before_data(
    config: ConfigDict, devices: Sequence[jax.Device] | None = None, *, begun: bool
) -> None:
    """Builds the run of a config on made-up data, so that a wrong value is refused at once.

    Args:
      config: checked config.
      devices: devices to run on, all by default.
      begun: the run has a checkpoint, so it starts from no other weights.

    Raises:
      InputError: see `build_run` and `check_training_data`; the weights to start from are not there
        or do not fit; or a network, task or augmentation of the user's own fails.
    """
    size = check_training_data(config)
    if config.pretrain.data:
        cls, _ = find_builder(config.pretrain.data)
        if needs_raw_data(cls) and not is_prepared(config.pretrain.data, config.data.data_dir):
            raise InputError(
                f"config.pretrain.data={config.pretrain.data} is not prepared: "
                f"python -m tfds_rsna.prepare {config.pretrain.data} --raw_dir=DIR"
            )
    rough = ConfigDict(config.to_dict())
    # FLOPs per step need the real image size.
    rough.budget_flops, rough.steps, rough.member_flops = 0.0, config.steps or 100, 0.0
    run = build_run(check_config(rough), DataInfo(size, 1000, 120.0, 40.0), devices)
    if config.model.name in MODELS or config.task in TASKS or config.augment.extra:
        _check_own(run)
    if not begun:
        _check_start(run)


def _check_own(run: Run) -> None:
    """Traces what the user has registered: the train step, or its augmentations alone."""
    config = run.config
    try:
        if config.model.name in MODELS or config.task in TASKS:
            _ = run.train_flops
        else:
            jax.eval_shape(
                lambda batch, root: make_inputs(config)(
                    batch, jax.random.split(root, config.batch_size)
                ),
                run.batch_shapes(),
                jax.random.key(0),
            )
    except InputError:
        raise
    except Exception as error:  # of the user's code, or of JAX for what it returns
        name = f"config.model.name={config.model.name} with config.task={config.task}"
        if config.augment.extra:
            name += f" and config.augment.extra={config.augment.extra}"
        raise InputError(f"{name} fails: {words_of(error)}") from error


def _check_start(run: Run) -> None:
    config = run.config
    if config.init_from:
        try:
            folder = open_network(config.init_from)
            other = described_network(folder, config.task, devices=run.parallel.devices)
        except InputError as error:
            raise InputError(f"config.init_from: {error}") from error
        if not config.model.grown_from:
            found, wanted = other.variable_shapes(), run.network.variable_shapes()
            check_same_shapes(found, wanted, config.init_from)
        else:
            _check_source(config, other.config)
    # What the hub holds is fetched after the data are known to be there.
    if config.model.pretrained and not as_named(config.model.pretrained).startswith("hf:"):
        check_pretrained(config)


def check_start_weights(run: Run) -> None:
    """Checks that a run's pretrained weights have the options and shapes of its network.

    Raises:
      InputError: see `check_pretrained`; or they are of another network.
    """
    check_pretrained(run.config)
    model = run.config.model
    if not model.pretrained:
        return
    if model.grown_from:
        check_weights(model.grown_from, model.pretrained)
    else:
        shapes = run.network.variable_shapes()
        backbone = {name: part["backbone"] for name, part in shapes.items()}
        check_weights(model.name, model.pretrained, backbone)


def _check_source(config: ConfigDict, source: ConfigDict) -> None:
    """Checks that a run to grow from is what `config.model.grown_from` says, and reads alike."""
    if config.model.grown_from != source.model.name:
        raise InputError(
            f"config.model.grown_from={config.model.grown_from}: {config.init_from} holds "
            f"{source.model.name}"
        )
    pairs = {"normalize": (config.normalize, source.normalize)}
    for key in ("padding", "bn_epsilon"):
        pairs[f"model.{key}"] = (config.model[key], source.model.get(key, config.model[key]))
    wrong = [f"--config.{key}={old}" for key, (new, old) in pairs.items() if new != old]
    if wrong:
        raise InputError(f"config.init_from={config.init_from} needs {' '.join(wrong)}")


def check_pretrained(config: ConfigDict) -> None:
    """Checks that the network of a config has the options that its pretrained weights need.

    Raises:
      InputError: the weights cannot be read, belong to another network, or were made with a
        padding or BatchNorm epsilon that differs from the config.
    """
    model = config.model
    if not model.pretrained or config.pretrain.data or config.init_from:
        return
    if config.budget_flops and is_workdir(Path(as_named(model.pretrained))):
        raise InputError(
            "config.budget_flops does not know what the run in config.model.pretrained="
            f"{model.pretrained} has spent; give config.steps"
        )
    options = pretrained_options(model.grown_from or model.name, model.pretrained)
    wrong = {key: value for key, value in options.items() if model[key] != value}
    if wrong:
        flags = " ".join(f"--config.model.{key}={value}" for key, value in wrong.items())
        raise InputError(f"config.model.pretrained={model.pretrained} needs {flags}")

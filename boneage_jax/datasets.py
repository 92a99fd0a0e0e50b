"""Opens the data set of a config, preparing it if it is not prepared yet."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from boneage_jax.data.source import Dataset, Split, cut_split, open_split, read_labels
from boneage_jax.errors import InputError
from boneage_jax.extensions import DATASETS
from boneage_jax.runtime.watchdog import PATIENCE, waiting_for, waiting_without_limit
from boneage_jax.tasks.registry import task_class
from tfds_rsna.builders import features_of, prepare
from tfds_rsna.find_builder import fitted_name

_SPLITS = ("train", "validation", "test")  # of all builders of tfds_rsna


def check_training_data(config: ConfigDict) -> int:
    """Checks a config against what the builder of its data tells of them without preparing them.

    Args:
      config: a checked config.

    Returns:
      Height and width of the images in pixels.

    Raises:
      InputError: unknown data set, or one whose images have no common size; a label of the task or
        a split is missing.
    """
    data = config.data
    features = features_of(fitted_name(f"{data.name}/{data.config}", data.fit))
    _check_records(data.name, features)
    _check_labels(config, features)
    for key in ("train_split", "eval_split"):
        if data.name not in DATASETS and data[key] not in _SPLITS:
            raise InputError(
                f"config.data.{key}={data[key]!r}: {data.name}/{data.config} has the splits "
                f"{', '.join(_SPLITS)}"
            )
    return _side(data, features)


def open_training_data(config: ConfigDict) -> Dataset:
    """Opens the data of a training; checks that its splits and the labels of its task exist.

    Args:
      config: a checked config.

    Raises:
      InputError: see `open_dataset`; a split of the config or a label of the task is missing.
    """
    dataset = open_dataset(config.data)
    for name in (config.data.train_split, config.data.eval_split):
        dataset.split(name)
    _check_labels(config, dataset.features)
    return dataset


def _check_records(name: str, features: Collection[str]) -> None:
    missing = [key for key in ("image", "id") if key not in features]
    if missing:
        raise InputError(f"records of {name} lack {' and '.join(missing)}")


def _check_labels(config: ConfigDict, features: Collection[str]) -> None:
    missing = [key for key in task_class(config.task).labels if key not in features]
    if missing:
        raise InputError(
            f"config.task={config.task} needs {' and '.join(missing)}; {config.data.name} has "
            f"{', '.join(sorted(features))}; choose another config.data.name"
        )


def _side(data: ConfigDict, features: Mapping[str, Any]) -> int:
    shape = features["image"].shape
    if not shape or not shape[0]:
        raise InputError(
            f"data.config={data.config!r} keeps every image at its own size; training needs "
            "one size, e.g. data.config=512"
        )
    return int(shape[0])


def open_dataset(config: ConfigDict) -> Dataset:
    """Opens the data set of a config, preparing it first if needed.

    Args:
      config: the `data` section: `name`, `config` (the TFDS builder config), `fit`, `raw_dir`,
        `data_dir`, `options` (of the builder), `uncompressed`, `masks`, `mask_mode`,
        `official_splits`, `test_fraction`, `validation_fraction`, `locked_fraction`,
        `split_seed`.

    Returns:
      The data set. If the raw data has no test or validation split, one is cut from `train`, first
      test, then validation from the remainder, then `locked` if asked for; by id, stratified by
      age and sex, and identical for everyone who uses the same seed.

    Raises:
      InputError: unknown data set, raw data missing or damaged, or neither prepared nor raw data.
    """
    options = {"masks": config.masks, "mask_mode": config.mask_mode}
    for key in config.get("options", {}):
        if key in (
            "name",
            "raw_dir",
            "data_dir",
            "overwrite",
            "download",
            "skip_unreadable",
            "fit",
        ):
            raise InputError(f"config.data.options.{key} is no option of {config.name}")
    with waiting_without_limit("the preparation of the data"):
        builder = prepare(
            f"{config.name}/{config.config}",
            raw_dir=config.raw_dir,
            data_dir=config.data_dir,
            fit=config.fit,
            **options | dict(config.get("options", {})),
        )
        _check_records(config.name, builder.info.features)
        names = [name for name, split in builder.info.splits.items() if split.num_examples]
        sources = {name: open_split(builder, name, config.uncompressed) for name in names}
    waiting_for("the data", PATIENCE)
    splits = {
        name: Split(name, source, np.arange(len(source)), read_labels(source))
        for name, source in sources.items()
    }
    if "train" not in splits:
        raise InputError(
            f"{config.name}/{config.config} has no split train; it has {', '.join(splits)}"
        )
    if not config.official_splits:
        splits = {"train": splits["train"]}
    for name in ("test", "validation", "locked"):
        fraction = config[f"{name}_fraction"]
        if name not in splits and fraction:
            splits |= cut_split(splits["train"], name, fraction, config.split_seed)
    background = Path(builder.data_path, "background")
    return Dataset(
        config.name,
        builder.builder_config.name if builder.builder_config else "",
        str(builder.version),
        _side(config, builder.info.features),
        splits,
        frozenset(builder.info.features),
        background if background.is_dir() else None,
    )

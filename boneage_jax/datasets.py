"""Opens the data set of a config, preparing it if it is not prepared yet."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from boneage_jax.data.source import Dataset, Split, cut_split, open_split, read_labels
from boneage_jax.errors import InputError
from boneage_jax.runtime.watchdog import PATIENCE, waiting_for, waiting_without_limit
from boneage_jax.tasks.registry import task_class
from tfds_rsna.builders import prepare


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
    missing = [k for k in task_class(config.task).labels if k not in dataset.features]
    if missing:
        raise InputError(
            f"config.task={config.task} needs {' and '.join(missing)}; {dataset.name} has "
            f"{', '.join(sorted(dataset.features))}; choose another config.data.name"
        )
    return dataset


def open_dataset(config: ConfigDict) -> Dataset:
    """Opens the data set of a config, preparing it first if needed.

    Args:
      config: the `data` section: `name`, `config` (the TFDS builder config), `raw_dir`,
        `data_dir`, `options` (of the builder), `uncompressed`, `masks`, `mask_mode`,
        `official_splits`, `test_fraction`, `validation_fraction`, `split_seed`.

    Returns:
      The data set. If the raw data has no test or validation split, one is cut from `train`, first
      test, then validation from the remainder; by id, stratified by age and sex, and identical for
      everyone who uses the same seed.

    Raises:
      InputError: unknown data set, raw data missing or damaged, or neither prepared nor raw data.
    """
    options = {"masks": config.masks, "mask_mode": config.mask_mode}
    for key in config.get("options", {}):
        if key in ("name", "raw_dir", "data_dir", "overwrite", "download", "skip_unreadable"):
            raise InputError(f"config.data.options.{key} is no option of {config.name}")
    with waiting_without_limit("the preparation of the data"):
        builder = prepare(
            f"{config.name}/{config.config}",
            raw_dir=config.raw_dir,
            data_dir=config.data_dir,
            **options | dict(config.get("options", {})),
        )
        missing = [key for key in ("image", "id") if key not in builder.info.features]
        if missing:
            raise InputError(f"records of {config.name} lack {' and '.join(missing)}")
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
    for name in ("test", "validation"):
        fraction = config[f"{name}_fraction"]
        if name not in splits and fraction:
            splits |= cut_split(splits["train"], name, fraction, config.split_seed)
    image_size = builder.info.features["image"].shape[0]
    if image_size is None:
        raise InputError(
            f"data.config={config.config!r} keeps every image at its own size; training needs "
            "one size, e.g. data.config=512"
        )
    background = Path(builder.data_path, "background")
    return Dataset(
        config.name,
        builder.builder_config.name if builder.builder_config else "",
        str(builder.version),
        image_size,
        splits,
        frozenset(builder.info.features),
        background if background.is_dir() else None,
    )

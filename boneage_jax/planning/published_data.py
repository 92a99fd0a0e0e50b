"""Properties of a data set without its files, for planning a run on it."""

import re

from ml_collections import ConfigDict

from boneage_jax.data.info import DataInfo
from boneage_jax.datasets import open_dataset
from boneage_jax.errors import InputError
from boneage_jax.ranges import RANGES

# Halabi et al., Radiology 2019;290:498-503: images of the train and the validation split, mean and
# standard deviation of the bone age of the train split in months.
_RSNA = (12_611, 1_425, 127.3208, 41.1820)


def info_for_planning(data: ConfigDict, images: int = 0) -> tuple[DataInfo, int, str]:
    """Returns the properties of the prepared data if present, else the published ones.

    Arguments and results as for `published_info`. Prepares and downloads nothing.
    """
    from tfds_rsna.builders import is_prepared

    if images or data.masks or not is_prepared(f"{data.name}/{data.config}", data.data_dir):
        return published_info(data, images)
    here = ConfigDict(data.to_dict())
    here.raw_dir = ""
    dataset = open_dataset(here)
    train = dataset.split(data.train_split)
    validation = len(dataset.splits.get(data.eval_split, ()))
    return DataInfo.of(dataset, train), validation, "the prepared data"


def published_info(data: ConfigDict, images: int = 0) -> tuple[DataInfo, int, str]:
    """Returns the properties of a data set from publications or from its builder.

    Args:
      data: the `data` section of a config.
      images: size of the training split; 0 takes the published size or that of the builder.

    Returns:
      (properties, size of the validation split or 0 if unknown, source of these numbers).

    Raises:
      InputError: `data.config` names no image size, or the size of the data set is unknown and
        `images` is 0.
    """
    size = data.config.partition("-")[0]
    if not re.fullmatch("[0-9]{1,9}", size) or int(size) not in RANGES["bench.image_size"]:
        raise InputError(
            f"config.data.config={data.config!r} names no image size, e.g. 512; training needs "
            f"one {RANGES['bench.image_size']}"
        )
    mean, std = _RSNA[2:]
    if images:
        return DataInfo(int(size), images, mean, std), 0, "--train_images"
    if data.name == "rsna_bone_age":
        train, validation = _RSNA[:2]
        source = "published numbers of the RSNA 2017 data set (doi 10.1148/radiol.2018180736)"
        if not data.official_splits:
            left = train * (1 - data.test_fraction)
            validation, train = (
                round(left * data.validation_fraction),
                round(left * (1 - data.validation_fraction)),
            )
            source += f", cut as config.data says from {_RSNA[0]}"
        return DataInfo(int(size), train, mean, std), validation, source
    if data.name == "hand_phantom":
        from tfds_rsna.hand_phantom.hand_phantom_dataset_builder import Builder

        if data.config in Builder.builder_configs:
            made = Builder.builder_configs[data.config]
            return (
                DataInfo(int(size), made.num_train, mean, std),
                made.num_validation,
                "the builder",
            )
        raise InputError(
            f"hand_phantom has no config {data.config!r}; it has "
            f"{', '.join(Builder.builder_configs)}"
        )
    raise InputError(
        f"the number of training images of {data.name} is unknown without its data; give "
        "--train_images=N"
    )

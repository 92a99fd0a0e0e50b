"""What a run must know of its training data: sizes, scale of the ages, costs."""

import dataclasses

from ml_collections import ConfigDict

from boneage_jax.data.source import Dataset, Split, open_dataset, standardization
from boneage_jax.errors import InputError
from boneage_jax.inference.background_removal import Cost, read_note

# Halabi et al., Radiology 2019;290:498-503: images of the train and the validation split, mean and
# standard deviation of the bone age of the train split in months.
_RSNA = (12_611, 1_425, 127.3208, 41.1820)


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a run must know of its training data to be built again without it.

    Attributes:
      image_size: pixels.
      train_images: size of the training split.
      age_mean, age_std: months, of the training split; 0 and 1 where it has no ages.
      mask_flops: what the hand masks of the data have cost, U-Net included.
      background: how the background was taken out, "" where it was not.
    """

    image_size: int
    train_images: int
    age_mean: float
    age_std: float
    mask_flops: int = 0
    background: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.image_size, int) or self.image_size < 1:
            raise ValueError(f"image_size={self.image_size!r} must be a whole number above 0")

    @classmethod
    def of(cls, dataset: Dataset, train: Split) -> "Facts":
        ages = standardization(train) if "bone_age" in train.labels else (0.0, 1.0)
        note = read_note(dataset.background) if dataset.background else None
        mode, cost = note or ("", Cost())
        return cls(dataset.image_size, len(train), *ages, cost.total, mode)


def facts_for_planning(data: ConfigDict, images: int = 0) -> tuple[Facts, int, str]:
    """The facts of the prepared data where there is some, else those on paper.

    Args and results: see `facts_on_paper`; data that has yet to be made is never made.
    """
    from tfds_rsna.prepare import is_prepared

    if images or data.masks or not is_prepared(f"{data.name}/{data.config}", data.data_dir):
        return facts_on_paper(data, images)
    here = ConfigDict(data.to_dict())
    here.raw_dir = ""
    dataset = open_dataset(here)
    train = dataset.split(data.train_split)
    validation = len(dataset.splits.get(data.eval_split, ()))
    return Facts.of(dataset, train), validation, "the prepared data"


def facts_on_paper(data: ConfigDict, images: int = 0) -> tuple[Facts, int, str]:
    """The facts of a data set that is not here, for planning a run.

    Args:
      data: the `data` section of a config.
      images: size of the training split; as published, or as the builder makes it, where 0.

    Returns:
      (facts, size of the validation split or 0 where that is not known, where they are from).

    Raises:
      InputError: `data.config` names no image size, or nothing is known of the data set and
        `images` is 0.
    """
    size = data.config.partition("-")[0]
    if not size.isdigit() or not int(size):
        raise InputError(
            f"config.data.config={data.config!r} names no image size, e.g. 512; training needs one"
        )
    mean, std = _RSNA[2:]
    if images:
        return Facts(int(size), images, mean, std), 0, "--train_images"
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
        return Facts(int(size), train, mean, std), validation, source
    if data.name == "hand_phantom":
        from tfds_rsna.hand_phantom.hand_phantom_dataset_builder import Builder

        if data.config in Builder.builder_configs:
            made = Builder.builder_configs[data.config]
            return Facts(int(size), made.num_train, mean, std), made.num_validation, "the builder"
        raise InputError(
            f"hand_phantom has no config {data.config!r}; it has "
            f"{', '.join(Builder.builder_configs)}"
        )
    raise InputError(
        f"how many images {data.name} trains on is not known without its data: --train_images=N"
    )

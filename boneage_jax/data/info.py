"""Properties of the training data that a run needs: image size, image count, scale of the ages."""

import dataclasses
from typing import TYPE_CHECKING

from boneage_jax.data.mask_cost import MaskCost, read_note
from boneage_jax.ranges import Range

if TYPE_CHECKING:
    from boneage_jax.data.source import Dataset, Split

_RANGES = {
    "image_size": Range(1, 16_384),
    "train_images": Range(1, 1e12),
    "age_mean": Range(-1e4, 1e4),
    "age_std": Range(0, 1e4, "(]"),
    "mask_flops": Range(0, 1e30),
}


@dataclasses.dataclass(frozen=True)
class DataInfo:
    """Properties of the training data that suffice to rebuild its networks without the data.

    Attributes:
      image_size: height and width in pixels.
      train_images: number of images in the training split.
      age_mean: mean age of the training split in months; 0 without ages.
      age_std: standard deviation of these ages in months; 1 without ages.
      mask_flops: FLOPs of the hand masks of the data, including training of the U-Net.
      background: how the background was removed, a mode of `boneage_jax.data.masks`; "" if it was
        not.
    """

    image_size: int
    train_images: int
    age_mean: float
    age_std: float
    mask_flops: int = 0
    background: str = ""

    def __post_init__(self) -> None:
        for name, found in _RANGES.items():
            value = getattr(self, name)
            whole = name not in ("age_mean", "age_std")
            if value not in found or (whole and not isinstance(value, int)):
                kind = "a whole number " if whole else ""
                raise ValueError(f"{name}={value!r} must be {kind}{found}")
        if not isinstance(self.background, str):
            raise ValueError(f"background={self.background!r} must be a text")

    @classmethod
    def of(cls, dataset: "Dataset", train: "Split") -> "DataInfo":
        """Describes `dataset`, with `train` as its training split."""
        from boneage_jax.data.source import standardization

        ages = standardization(train) if "bone_age" in train.labels else (0.0, 1.0)
        note = read_note(dataset.background) if dataset.background else None
        mode, cost = note or ("", MaskCost())
        return cls(dataset.image_size, len(train), *ages, cost.total, mode)

"""Properties of the training data that a run needs: image size, image count, scale of the ages."""

import dataclasses
from typing import TYPE_CHECKING

from boneage_jax.data.mask_cost import MaskCost, read_note

if TYPE_CHECKING:
    from boneage_jax.data.source import Dataset, Split


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
        if not isinstance(self.image_size, int) or self.image_size < 1:
            raise ValueError(f"image_size={self.image_size!r} must be a whole number above 0")

    @classmethod
    def of(cls, dataset: "Dataset", train: "Split") -> "DataInfo":
        """Describes `dataset`, with `train` as its training split."""
        from boneage_jax.data.source import standardization

        ages = standardization(train) if "bone_age" in train.labels else (0.0, 1.0)
        note = read_note(dataset.background) if dataset.background else None
        mode, cost = note or ("", MaskCost())
        return cls(dataset.image_size, len(train), *ages, cost.total, mode)

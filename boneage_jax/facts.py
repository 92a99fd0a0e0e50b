"""What a run must know of its training data: sizes, scale of the ages, costs."""

import dataclasses

from boneage_jax.background import Cost, read_note
from boneage_jax.data.source import Dataset, Split, standardization


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

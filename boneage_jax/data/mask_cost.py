"""FLOPs of the hand masks of a prepared data set, as recorded beside its records."""

import dataclasses
from pathlib import Path

from boneage_jax.errors import InputError
from boneage_jax.json_file import read_json

NOTE = "background.json"  # in the folder background/ of a data set or workdir


@dataclasses.dataclass(frozen=True)
class MaskCost:
    """FLOPs of the masks of a data set, each counted once.

    Attributes:
      images: number of radiographs that were segmented.
      flops_per_mask: FLOPs of the U-Net per radiograph; 0 for masks of unknown origin.
      train_flops: FLOPs spent on training the U-Net.
    """

    images: int = 0
    flops_per_mask: int = 0
    train_flops: int = 0

    @property
    def total(self) -> int:
        """FLOPs of training the U-Net and segmenting all images."""
        return self.train_flops + self.images * self.flops_per_mask


def read_note(folder: Path) -> tuple[str, MaskCost] | None:
    """Reads mask mode and cost from a `background/` folder; None if none is recorded.

    Raises:
      InputError: the record is damaged.
    """
    path = folder / NOTE
    try:
        note = read_json(path)
        return str(note["mode"]), MaskCost(**{k: int(v) for k, v in note["cost"].items()})
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).removeprefix(f"{path} ")
        raise InputError(f"{path} is damaged ({reason}); prepare the data again") from error

"""TFDS builder: procedural hand radiographs that need no download."""

import dataclasses
import sys
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from tfds_rsna.hand_phantom.render import make_phantom

_FIRST_ID = {"train": 0, "validation": 1_000_000, "test": 2_000_000}


@dataclasses.dataclass
class PhantomConfig(tfds.core.BuilderConfig):
    """Side in pixels and number of images per split."""

    size: int = 96
    images: tuple[int, int, int] = (2400, 300, 300)  # train, validation, test


def _configs() -> list[PhantomConfig]:
    full = [
        PhantomConfig(name=str(size), size=size, description=f"Squares of {size} pixels.")
        for size in (64, 96, 128, 256, 512)
    ]
    small = PhantomConfig(
        name="64-small",
        size=64,
        images=(96, 32, 32),
        description="A few squares of 64 pixels, for trying things out.",
    )
    return [*full, small]


class Builder(tfds.core.GeneratorBasedBuilder):
    """Hand phantoms; the same index is the same hand at every size and on every machine."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First version."}
    BUILDER_CONFIGS: ClassVar[list[PhantomConfig]] = _configs()

    def __init__(self, **tfds_options: Any):
        tfds_options.setdefault("file_format", "array_record")
        super().__init__(**tfds_options)

    def _info(self) -> tfds.core.DatasetInfo:
        size = self.builder_config.size
        pixels = tfds.features.Tensor(shape=(size, size, 1), dtype=np.uint8, encoding="bytes")
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": pixels,
                    "mask": pixels,  # 0 background, 1 hand
                    "id": np.int64,
                    "bone_age": np.float32,  # months
                    "male": np.int64,
                    "height": np.int32,
                    "width": np.int32,
                }
            ),
            supervised_keys=("image", "bone_age"),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        counts = zip(_FIRST_ID, self.builder_config.images, strict=True)
        return {split: self._generate_examples(split, count) for split, count in counts}

    def _generate_examples(self, split: str, count: int) -> Iterator[tuple[int, dict[str, Any]]]:
        size = self.builder_config.size
        # One thread: drawing is many small NumPy calls, which threads only make slower.
        for index in tqdm(
            range(count),
            unit="image",
            desc=f"drawing {split}",
            mininterval=0.2 if sys.stderr.isatty() else 20.0,
        ):
            phantom = make_phantom(index, size, split)
            key = _FIRST_ID[split] + index
            yield (
                key,
                {
                    "image": phantom.image[..., None],
                    "mask": phantom.mask[..., None],
                    "id": key,
                    "bone_age": phantom.bone_age,
                    "male": int(phantom.male),
                    "height": size,
                    "width": size,
                },
            )

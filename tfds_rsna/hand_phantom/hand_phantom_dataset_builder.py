"""TFDS builder for procedural hand radiographs, which need no download."""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from boneage_jax.runtime.progress import progress
from tfds_rsna.hand_phantom.workers import draw_many

_FIRST_ID = {"train": 0, "validation": 1_000_000, "test": 2_000_000}
_SIZES = (64, 96, 128, 160, 192, 224, 256, 299, 512)


@dataclasses.dataclass
class PhantomConfig(tfds.core.BuilderConfig):
    """Side in pixels and number of images per split."""

    size: int = 96
    num_train: int = 3000
    num_validation: int = 400
    num_test: int = 400


class Builder(tfds.core.GeneratorBasedBuilder):
    """Hand phantoms; an index gives the same hand at every size and on every machine."""

    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {
        "1.0.0": "First version.",
        "1.1.0": "Bones drawn as cortex and marrow; hands, poses and exposures of greater variety.",
    }
    BUILDER_CONFIGS: ClassVar[list[PhantomConfig]] = [
        *(
            PhantomConfig(name=str(size), size=size, description=f"Squares of {size} pixels.")
            for size in _SIZES
        ),
        PhantomConfig(
            name="64-small",
            size=64,
            num_train=96,
            num_validation=32,
            num_test=32,
            description="A few squares of 64 pixels, for trying things out.",
        ),
    ]

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
        config = self.builder_config
        counts = (config.num_train, config.num_validation, config.num_test)
        return {
            split: self._generate_examples(split, count)
            for split, count in zip(_FIRST_ID, counts, strict=True)
        }

    def _generate_examples(self, split: str, count: int) -> Iterator[tuple[int, dict[str, Any]]]:
        size = self.builder_config.size
        phantoms = progress(
            draw_many(split, count, size), total=count, unit="image", desc=f"drawing {split}"
        )
        for key, phantom in enumerate(phantoms, start=_FIRST_ID[split]):
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

"""TFDS builder for radiographs with a mask of the hand."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from boneage_jax.data.masks import NO_HAND
from boneage_jax.data.splits import parse_fractions, stratified_split
from boneage_jax.errors import InputError
from tfds_rsna.decode import Decoded, Item, decode_all
from tfds_rsna.hand_mask.pairs import Pair, find_pairs, fit_mask
from tfds_rsna.raw_builder import RawDataBuilder
from tfds_rsna.sizes import size_configs

_SIZES = ("256", "384", "512", "original", "64", "128", "299")
_FRACTIONS = {"train": 0.8, "validation": 0.2}


class Builder(RawDataBuilder):
    """Grey square images with a hand mask (1 hand, 0 background), from PNG masks or COCO JSON.

    Splits are by id and made here, before any augmentation, so that no flipped or rotated copy of a
    training image can reach the validation split.

    All arguments beyond TFDS's own are needed only for preparing.

    Args:
      raw_dir: folder with the images and the masks.
      images: see `tfds_rsna.hand_mask.pairs.find_pairs`, as for the next three.
      masks: folder of PNG masks.
      coco: COCO JSON file.
      category: COCO category of the hand.
      fractions: sizes of the splits, as a mapping or `train=0.8,validation=0.2`.
      seed: seed of the splits.
      skip_unreadable: leave out unreadable images instead of stopping.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First version."}
    BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = size_configs(_SIZES)
    OPTIONS: ClassVar[dict[str, str]] = {
        "images": "folder of the images in raw_dir (default: all of raw_dir)",
        "masks": "folder of PNG masks in raw_dir (default: the one named *mask or *masks)",
        "coco": "COCO JSON file in raw_dir, in place of masks (default: the only JSON file)",
        "category": "COCO category of the hand (default: the only one)",
        "fractions": "of the splits (train=0.8,validation=0.2)",
        "seed": "of the splits, a whole number (0)",
    }

    def __init__(
        self,
        *,
        raw_dir: str | Path | None = None,
        images: str = "",
        masks: str = "",
        coco: str = "",
        category: str = "",
        fractions: str | Mapping[str, float] = "",
        seed: int | str = 0,
        skip_unreadable: bool = False,
        **tfds_options: Any,
    ):
        self._places = {"images": images, "masks": masks, "coco": coco, "category": category}
        self._fractions = parse_fractions(fractions) or _FRACTIONS
        try:
            self._seed = int(seed)
        except ValueError:
            raise InputError(f"seed is {seed!r}; give a whole number") from None
        super().__init__(raw_dir=raw_dir, skip_unreadable=skip_unreadable, **tfds_options)

    def _info(self) -> tfds.core.DatasetInfo:
        pixels = tfds.features.Tensor(
            shape=(self._size, self._size, 1), dtype=np.uint8, encoding="bytes"
        )
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": pixels,
                    "mask": pixels,
                    "id": tfds.features.Text(),
                    "height": tfds.features.Scalar(np.int32),
                    "width": tfds.features.Scalar(np.int32),
                }
            ),
            supervised_keys=("image", "mask"),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        raw_dir = self._find_raw_dir(dl_manager)
        if raw_dir is None:
            raise InputError("hand_mask needs --raw_dir=DIR, the folder of images and masks")
        pairs, found = find_pairs(raw_dir, **self._places)
        print("; ".join(found), file=sys.stderr)
        parts = stratified_split(
            [pair.id for pair in pairs], None, None, self._fractions, self._seed
        )
        return {
            name: self._generate_examples(name, [pairs[i] for i in part])
            for name, part in parts.items()
        }

    def _generate_examples(
        self, split: str, pairs: Sequence[Pair]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        by_id = {pair.id: pair for pair in pairs}
        for decoded in decode_all(
            [Item(pair.id, pair.image) for pair in pairs],
            self._size,
            skip_unreadable=self._skip_unreadable,
            description=f"{self.name} {split}",
            noted=self.noted,
            fit=self._stored.fit,
        ):
            mask = self._mask(by_id[decoded.key], decoded)
            yield (
                decoded.key,
                {
                    "image": decoded.image[..., None],
                    "mask": mask.astype(np.uint8)[..., None],
                    "id": decoded.key,
                    "height": decoded.height,
                    "width": decoded.width,
                },
            )

    def _mask(self, pair: Pair, decoded: Decoded) -> np.ndarray:
        """Returns the checked mask of an image, bool, in the geometry of `decoded.image`."""
        mask = pair.read_mask()
        if mask.shape != (decoded.height, decoded.width):
            raise InputError(
                f"{pair.mask_name} is {mask.shape[1]}x{mask.shape[0]} pixels, its image "
                f"{pair.image} {decoded.width}x{decoded.height}; export the mask at image size"
            )
        if mask.all():
            raise InputError(f"{pair.mask_name} covers the whole image; redraw or remove it")
        fitted = mask if self._size is None else fit_mask(mask, self._size, self._stored.fit)
        if not fitted.any():
            what = f"vanishes at {self._size} pixels" if mask.any() else "shows no hand"
            raise InputError(f"{pair.mask_name} {what}; redraw or remove it")
        if mask.mean() < NO_HAND:
            raise InputError(
                f"{pair.mask_name} covers {mask.mean():.2%} of its image, less than a hand does; "
                "are its coordinates in pixels? Redraw or remove it"
            )
        return fitted

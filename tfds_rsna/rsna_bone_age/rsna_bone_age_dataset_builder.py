"""TFDS builder for the RSNA Pediatric Bone Age Challenge 2017."""

import tempfile
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from boneage_jax.data.masks import MODES
from boneage_jax.errors import InputError
from tfds_rsna.decode import Item, decode_all
from tfds_rsna.download import download
from tfds_rsna.raw_builder import RawDataBuilder
from tfds_rsna.rsna_bone_age.layouts import Radiograph, find_splits
from tfds_rsna.sizes import size_configs

_SIZES = ("256", "384", "512", "640", "original", "128", "160", "192", "224", "299", "320", "380")


class Builder(RawDataBuilder):
    """Grey square images with bone age in months and sex.

    All arguments beyond TFDS's own are needed only for preparing.

    Args:
      raw_dir: folder with the data in any layout (see `layouts`), or TFDS's `manual_dir`;
        downloaded from RSNA if neither is given.
      skip_unreadable: leave out unreadable images instead of stopping.
      masks: for configs without background, a folder of hand masks or a U-Net's workdir.
      base_url: where to download the archives from.
      checksums: SHA-256 of each archive.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First version."}
    BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = size_configs(_SIZES, MODES)
    OPTIONS: ClassVar[dict[str, str]] = {"base_url": "where RSNA's archives are downloaded from"}
    CAN_DOWNLOAD = True
    BASE_URL = "https://s3.amazonaws.com/east1.public.rsna.org/AI/2017/"
    # SHA-256; unknown for the test set.
    CHECKSUMS: ClassVar[dict[str, str]] = {
        "Bone+Age+Training+Set.zip": (
            "9eab917f59bf520b4eb10803d33e7007ea3b3c2bd4df1c55aff45bc339b2736a"
        ),
        "Bone+Age+Training+Set+Annotations.zip": (
            "f6373249b6ec85d182c62ab83f05fa76dff90ba03315e455dd6de332dffc7215"
        ),
        "Bone+Age+Validation+Set.zip": (
            "683ea5398dd9d0730af883e673176a5c6817fd35a5a59331a500fa7affcd36f0"
        ),
        "Bone+Age+Test+Set.zip": "",
    }

    def __init__(
        self,
        *,
        raw_dir: str | Path | None = None,
        skip_unreadable: bool = False,
        masks: str | Path = "",
        base_url: str = "",
        checksums: Mapping[str, str] | None = None,
        **tfds_options: Any,
    ):
        self._base_url = base_url or self.BASE_URL
        self._checksums = self.CHECKSUMS if checksums is None else checksums
        super().__init__(
            raw_dir=raw_dir, skip_unreadable=skip_unreadable, masks=masks, **tfds_options
        )

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    # Bytes, not PNG: reads in a fifth of the time, and without TensorFlow.
                    "image": tfds.features.Tensor(
                        shape=(self._size, self._size, 1), dtype=np.uint8, encoding="bytes"
                    ),
                    "id": tfds.features.Scalar(np.int64),
                    "bone_age": tfds.features.Scalar(np.float32),
                    "male": tfds.features.Scalar(np.int64),
                    "height": tfds.features.Scalar(np.int32),
                    "width": tfds.features.Scalar(np.int32),
                }
            ),
            supervised_keys=("image", "bone_age"),
            homepage="https://www.rsna.org/rsnai/ai-image-challenge/RSNA-Pediatric-Bone-Age-Challenge-2017",
            license="Academic research, education and other non-commercial use; see the README.",
        )

    def _download_and_prepare(self, *args: Any, **kwargs: Any) -> None:
        # Beside the records, since /tmp is often small.
        with tempfile.TemporaryDirectory(dir=self.data_path, prefix="unpacked") as scratch:
            self._scratch = Path(scratch)
            super()._download_and_prepare(*args, **kwargs)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        raw_dir = self._find_raw_dir(dl_manager)
        if raw_dir is None:
            raw_dir = self._download(Path(dl_manager.download_dir, self.name))
        self._open_background()
        splits = find_splits(raw_dir, self._scratch)
        return {name: self._generate_examples(found, name) for name, found in splits.items()}

    def _generate_examples(
        self, radiographs: Sequence[Radiograph], split: str
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        items = [Item(str(radiograph.id), radiograph.source) for radiograph in radiographs]
        labels = {radiograph.id: radiograph for radiograph in radiographs}
        for decoded in decode_all(
            items,
            self._size,
            skip_unreadable=self._skip_unreadable,
            description=f"{self.name} {split}",
            background=self.background,
            noted=self.noted,
            fit=self._stored.fit,
        ):
            label = labels[int(decoded.key)]
            yield (
                label.id,
                {
                    "image": decoded.image[..., None],
                    "id": label.id,
                    "bone_age": label.bone_age,
                    "male": label.male,
                    "height": decoded.height,
                    "width": decoded.width,
                },
            )

    def _download(self, folder: Path) -> Path:
        """Downloads the archives; TFDS's download manager cannot resume an interrupted 9 GB."""
        for name, sha256 in self._checksums.items():
            try:
                target = folder / urllib.parse.unquote_plus(name)
                download(urllib.parse.urljoin(self._base_url, name), target, sha256)
            except InputError as error:
                raise InputError(
                    f"{error}; or download the data by other means and name its folder with "
                    "--raw_dir=DIR"
                ) from error
        return folder

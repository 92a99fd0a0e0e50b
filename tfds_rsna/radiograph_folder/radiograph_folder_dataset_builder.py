"""TFDS builder for any CSV of (file, age, sex) with its radiographs."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from boneage_jax.data.masks import MODES
from boneage_jax.data.splits import parse_fractions, stratified_split
from boneage_jax.errors import InputError
from tfds_rsna.decode import Item, decode_all
from tfds_rsna.radiograph_folder.table import Columns, Radiograph, find_csv, read_table
from tfds_rsna.raw_builder import RawDataBuilder
from tfds_rsna.sizes import size_configs

_SIZES = (
    "256",
    "384",
    "512",
    "640",
    "original",
    "64",
    "96",
    "128",
    "160",
    "192",
    "224",
    "320",
    "380",
)
_FRACTIONS = {"train": 0.8, "validation": 0.1, "test": 0.1}


class Builder(RawDataBuilder):
    """Grey square images with age in months and sex, from a CSV and a folder of images.

    All arguments beyond TFDS's own are needed only for preparing.

    Args:
      raw_dir: folder with the CSV and, at any depth, the images.
      csv: name of the CSV; if empty, the only one in the folder.
      file_column: column with the image. This and the other columns are guessed from the header if
        empty; the columns used are printed.
      age_column: column with the age.
      sex_column: column with the sex.
      split_column: column with the split.
      id_column: column with the person.
      age_unit: months, years or days; if empty, taken from the name of the column, else months.
      fractions: sizes of the splits if the CSV has no split column, as a mapping or
        `train=0.8,test=0.2`.
      seed: seed of those splits, which are by id and stratified by age and sex.
      skip_unreadable: leave out unreadable images instead of stopping.
      masks: for configs without background, a folder of hand masks or a U-Net's workdir.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First version."}
    BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = size_configs(_SIZES, MODES)
    OPTIONS: ClassVar[dict[str, str]] = {
        "csv": "CSV file in raw_dir (default: the only one)",
        "file_column": "column with the image: a path below raw_dir, a file name or a stem",
        "age_column": "column with the age",
        "age_unit": "months, years or days (default: from the column's name, else months)",
        "sex_column": "column with the sex: M/F, male/female, 1/0, true/false, blank for unknown",
        "split_column": "column with train, validation or test",
        "id_column": "column with the person; all images of one stay in one split",
        "fractions": "of the splits, where no column tells (train=0.8,validation=0.1,test=0.1)",
        "seed": "of the splits, a whole number (0)",
    }

    def __init__(
        self,
        *,
        raw_dir: str | Path | None = None,
        csv: str = "",
        file_column: str = "",
        age_column: str = "",
        age_unit: str = "",
        sex_column: str = "",
        split_column: str = "",
        id_column: str = "",
        fractions: str | Mapping[str, float] = "",
        seed: int | str = 0,
        skip_unreadable: bool = False,
        masks: str | Path = "",
        **tfds_options: Any,
    ):
        self._csv = csv
        self._columns = Columns(
            file=file_column,
            age=age_column,
            sex=sex_column,
            split=split_column,
            id=id_column,
            age_unit=age_unit,
        )
        self._fractions = parse_fractions(fractions) or _FRACTIONS
        self._seed = _whole_number(seed)
        super().__init__(
            raw_dir=raw_dir, skip_unreadable=skip_unreadable, masks=masks, **tfds_options
        )

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(
                        shape=(self._size, self._size, 1), dtype=np.uint8, encoding="bytes"
                    ),
                    "id": tfds.features.Text(),
                    "bone_age": tfds.features.Scalar(np.float32),
                    "male": tfds.features.Scalar(np.int64),
                    "height": tfds.features.Scalar(np.int32),
                    "width": tfds.features.Scalar(np.int32),
                }
            ),
            supervised_keys=("image", "bone_age"),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        raw_dir = self._find_raw_dir(dl_manager)
        if raw_dir is None:
            raise InputError("radiograph_folder needs --raw_dir=DIR, the folder of CSV and images")
        self._open_background()
        path = find_csv(raw_dir, self._csv)
        rows, columns = read_table(path, raw_dir, self._columns)
        print(_describe(path, rows, columns), file=sys.stderr)
        return {
            name: self._generate_examples(name, part)
            for name, part in self._cut(rows, bool(columns.split)).items()
        }

    def _cut(self, rows: Sequence[Radiograph], given: bool) -> dict[str, list[Radiograph]]:
        if given:
            names = [n for n in ("train", "validation", "test") if any(r.split == n for r in rows)]
            return {name: [row for row in rows if row.split == name] for name in names}
        parts = stratified_split(
            [row.id for row in rows],
            [row.age for row in rows],
            [row.male for row in rows],
            self._fractions,
            self._seed,
        )
        return {name: [rows[i] for i in part] for name, part in parts.items()}

    def _generate_examples(
        self, split: str, rows: Sequence[Radiograph]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        by_key = {row.key: row for row in rows}
        for decoded in decode_all(
            [Item(row.key, row.path) for row in rows],
            self._size,
            skip_unreadable=self._skip_unreadable,
            description=f"{self.name} {split}",
            background=self.background,
        ):
            row = by_key[decoded.key]
            yield (
                decoded.key,
                {
                    "image": decoded.image[..., None],
                    "id": row.id,
                    "bone_age": np.float32(row.age),
                    "male": row.male,
                    "height": decoded.height,
                    "width": decoded.width,
                },
            )


def _describe(path: Path, rows: Sequence[Radiograph], columns: Columns) -> str:
    """Returns one line that lets a user notice a wrong guess, above all a wrong unit of age."""
    ages = [row.age for row in rows]
    taken = ", ".join(
        f"{kind}={name!r}"
        for kind, name in (
            ("file", columns.file),
            ("age", columns.age),
            ("sex", columns.sex),
            ("split", columns.split),
            ("id", columns.id),
        )
        if name
    )
    return (
        f"{path}: {len(rows)} images; columns {taken}; age read as {columns.age_unit}, "
        f"{min(ages):.1f} to {max(ages):.1f} months"
    )


def _whole_number(seed: int | str) -> int:
    try:
        return int(seed)
    except ValueError:
        raise InputError(f"seed is {seed!r}; give a whole number") from None

"""TFDS builder for any table of (file, age, sex) with its radiographs."""

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
from tfds_rsna.radiograph_folder.columns import Columns, find_table
from tfds_rsna.radiograph_folder.table import (
    Labelled,
    Radiograph,
    parse_sex_values,
    read_table,
)
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
    "299",
    "320",
    "380",
)
_GROWN = 240.0  # months; bone age ends below
_FRACTIONS = {"train": 0.8, "validation": 0.1, "test": 0.1}


class Builder(RawDataBuilder):
    """Grey square images with age in months and sex, from a table and a folder of images.

    All arguments beyond TFDS's own are needed only for preparing.

    Args:
      raw_dir: folder with the table and, at any depth, the images.
      csv: name of the table, CSV or XLSX; if empty, the only fitting one in the folder.
      file_column: column with the image. This and the other columns are guessed from the header if
        empty; the columns used are printed.
      age_column: column with the age.
      sex_column: column with the sex.
      sex_values: codes of the sex, `male=1,female=2`, where they are not the usual ones.
      split_column: column with the split.
      id_column: column with the person.
      age_unit: months, years, weeks or days; if empty, taken from the name of the column, else
        months.
      fractions: sizes of the splits if the table has no split column, as a mapping or
        `train=0.8,test=0.2`.
      seed: seed of those splits, which are by id and stratified by age and sex.
      skip_unreadable: leave out images that are unreadable or missing instead of stopping.
      masks: for configs without background, a folder of hand masks or a U-Net's workdir.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First version."}
    BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = size_configs(_SIZES, MODES)
    OPTIONS: ClassVar[dict[str, str]] = {
        "csv": "table in raw_dir, CSV or XLSX (default: the only fitting one)",
        "file_column": "column with the image: a path below raw_dir, a file name or a stem",
        "age_column": "column with the age",
        "age_unit": "months, years, weeks or days (default: from the column's name, else months)",
        "sex_column": "column with the sex: M/F, male/female, 1/0, true/false, blank for unknown",
        "sex_values": "other codes of the sex, e.g. male=1,female=2",
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
        sex_values: str = "",
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
            sex_values=sex_values,
        )
        parse_sex_values(sex_values)  # raises on a wrong value
        self._own_fractions = parse_fractions(fractions)
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
            raise InputError("radiograph_folder needs --raw_dir=DIR, a folder of table and images")
        self._open_background()
        path, others = find_table(raw_dir, self._csv, self._columns)
        labelled = read_table(path, raw_dir, self._columns, skip_missing=self._skip_unreadable)
        rows, columns = labelled.rows, labelled.columns
        for line in _describe(path, labelled, others):
            print(line, file=sys.stderr)
        if columns.split and self._own_fractions:
            print(f"fractions are not used: column {columns.split!r} tells", file=sys.stderr)
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
            self._own_fractions or _FRACTIONS,
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
            noted=self.noted,
            fit=self._stored.fit,
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


def _describe(path: Path, labelled: Labelled, others: Sequence[str]) -> list[str]:
    """Returns lines that let a user notice a wrong guess, above all a wrong unit of age."""
    rows, columns = labelled.rows, labelled.columns
    ages, sexes = [row.age for row in rows], [row.male for row in rows]
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
    adults = sum(age > _GROWN for age in ages)
    older = f" ({adults} above {_GROWN:g})" if adults else ""
    return [
        f"{path}: {len(rows)} images; columns {taken}; age read as {columns.age_unit}, "
        f"{min(ages):.1f} to {max(ages):.1f} months{older}; {sexes.count(1)} male, "
        f"{sexes.count(0)} female, {sexes.count(-1)} of unknown sex",
        *(f"{path}: {note}" for note in labelled.notes),
        *(f"{name} is not the table of these images; ignored" for name in others),
    ]


def _whole_number(seed: int | str) -> int:
    try:
        return int(seed)
    except ValueError:
        raise InputError(f"seed is {seed!r}; give a whole number") from None

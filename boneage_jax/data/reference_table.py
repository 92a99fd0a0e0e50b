"""A user's own table of mean and standard deviation of bone age by sex and chronological age."""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from boneage_jax.data.label_table import (
    SEX_COLUMNS,
    find_column,
    read_numbers,
    read_sex,
    read_table,
)
from boneage_jax.errors import InputError

NO_AGE = "no sd_score: the chronological age is unknown"
NO_SEX = "no sd_score: the sex is unknown"
OUTSIDE = "no sd_score: the age is beyond the reference"

_COLUMNS = ("sex", "age_months", "mean", "sd")


class Curve(NamedTuple):
    """Mean and standard deviation of bone age by chronological age, months; float64 [n] each."""

    age: np.ndarray
    mean: np.ndarray
    sd: np.ndarray


class ReferenceTable:
    """A reference of bone age.

    Args:
      path: CSV or XLSX with the columns sex, age_months, mean, sd, in months.

    Raises:
      InputError: an unreadable file, a missing column, a value that is no number or cannot be, an
        age that appears twice for a sex, or a sex with fewer than two ages.
    """

    def __init__(self, path: Path):
        table = read_table(path)
        sex = find_column(table.header, SEX_COLUMNS)
        names = [find_column(table.header, [name.replace("_", "")]) for name in _COLUMNS[1:]]
        if not (sex and all(names) and table.rows):
            found = ", ".join(map(repr, table.header)) or "nothing"
            raise InputError(
                f"--reference={path} needs rows with the columns {','.join(_COLUMNS)}, in months; "
                f"it has {found}"
            )
        columns = [
            read_numbers([cells[name] for _, cells in table.rows], f"{path}, column {name!r}")
            for name in names
        ]
        points: dict[int, dict[float, tuple[float, float]]] = {0: {}, 1: {}}
        for (line, cells), age, mean, sd in zip(table.rows, *columns, strict=True):
            male = read_sex(cells[sex], sex)
            if male not in (0, 1):
                raise InputError(f"{path} line {line}: {sex}={cells[sex]!r} must be M or F")
            if not (age >= 0 and mean >= 0 and sd > 0):  # also of NaN
                raise InputError(
                    f"{path} line {line}: age_months and mean must be numbers of at least 0, and "
                    "sd one above 0"
                )
            if points[male].setdefault(age, (mean, sd)) != (mean, sd):
                raise InputError(f"{path} line {line}: this age appears twice, with other values")
        self._curves = {
            male: Curve(*np.array([(age, *values[age]) for age in sorted(values)]).T)
            for male, values in points.items()
            if values
        }
        for male, curve in self._curves.items():
            if len(curve.age) < 2:
                raise InputError(
                    f"--reference={path} has one age of {'boys' if male else 'girls'}; values are "
                    "interpolated between two or more"
                )

    def score(self, bone_age: float, age: float, male: int) -> tuple[float, str]:
        """Returns how many standard deviations a bone age lies above the mean, and a note.

        Mean and standard deviation are linear between the ages of the table.

        Args:
          bone_age: months.
          age: chronological age, months.
          male: 1, 0, or -1 for unknown.

        Returns:
          (the score, ""), or (NaN, the reason); the reason is "" for an unknown bone age.
        """
        if math.isnan(bone_age):
            return math.nan, ""
        if math.isnan(age):
            return math.nan, NO_AGE
        if male not in (0, 1):
            return math.nan, NO_SEX
        curve = self._curves.get(male)
        if curve is None or not curve.age[0] <= age <= curve.age[-1]:
            return math.nan, OUTSIDE
        mean, sd = (float(np.interp(age, curve.age, values)) for values in (curve.mean, curve.sd))
        return (bone_age - mean) / sd, ""

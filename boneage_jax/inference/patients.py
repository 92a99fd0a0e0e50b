"""What is known of the patients of many files: a table of sexes, and the headers of DICOM files."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from boneage_jax.data.dicom_header import PatientHeader, is_dicom, read_patient
from boneage_jax.data.file_names import image_stem
from boneage_jax.data.reference_table import ReferenceTable

COLUMNS = (
    *("sex", "chronological_age_months", "difference_months", "laterality"),
    "pixel_spacing_mm",
)
SCORE = "sd_score"

FROM_HEADER = "sex of the DICOM header is used"
SEXES_DIFFER = "the DICOM header has the other sex, which is not used"


class Patient(NamedTuple):
    """What is known of a patient, and what was left out of the header.

    Attributes:
      male: 1, 0, or -1 for unknown: of the table of sexes, else of the header.
      header: None for a file that is not DICOM.
      notes: what a user should know.
    """

    male: int = -1
    header: PatientHeader | None = None
    notes: tuple[str, ...] = ()

    @property
    def age_months(self) -> float:
        """Chronological age in months, NaN if unknown."""
        return self.header.age_months if self.header else math.nan


class Patients(Sequence[int]):
    """The sexes of files by their number, for `Predictor.batches`.

    A header is read when its sex is asked for, right after its file was decoded, so nothing is read
    in advance however many files there are.

    Args:
      files: image files.
      sexes: 1, 0 or -1 by `image_stem`.
      sex_matters: whether the sex changes what is said of a file.
    """

    def __init__(self, files: Sequence[Path], sexes: Mapping[str, int], *, sex_matters: bool):
        self._files, self._sexes, self._sex_matters = files, sexes, sex_matters
        self._known: dict[int, Patient] = {}

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, number: Any) -> Any:
        self._known[number] = patient = self._read(self._files[number])
        return patient.male

    def take(self, number: int) -> Patient:
        """Returns a patient whose sex was asked for, and forgets it."""
        return self._known.pop(number)

    def _read(self, file: Path) -> Patient:
        male = self._sexes.get(image_stem(file), -1)
        return identify(male, read_patient(file), sex_matters=self._sex_matters)


def identify(male: int, header: PatientHeader | None, *, sex_matters: bool) -> Patient:
    """Returns what is known of a patient.

    Args:
      male: 1, 0, or -1 for unknown, as a user said it; goes above the header.
      header: see `read_patient`.
      sex_matters: whether the sex changes what is said of a file.
    """
    if header is None:
        return Patient(male)
    said = header.notes
    if male < 0 <= header.male:
        said = (*said, *([FROM_HEADER] if sex_matters else []))
    elif 0 <= header.male != male:
        said = (*said, SEXES_DIFFER)
    return Patient(header.male if male < 0 else male, header, said)


def patient_columns(files: Sequence[Path], reference: ReferenceTable | None) -> tuple[str, ...]:
    """Returns the columns on patients: none unless a DICOM file is among the files.

    A table of other files is the same as without them, so scripts that read those need no change.
    """
    if not any(map(is_dicom, files)):
        return ()
    return (*COLUMNS, *([SCORE] if reference else []))


def patient_cells(
    patient: Patient, bone_age: float, reference: ReferenceTable | None
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Returns the values on a patient by column, {} for a file that is not DICOM, and notes.

    Unknown ones are NaN, or "" for sex and laterality.

    Args:
      patient: see `Patients`.
      bone_age: months, NaN if unknown.
      reference: gives a standard-deviation score.
    """
    header, notes = patient.header, patient.notes
    score = math.nan
    if reference is not None:
        score, reason = reference.score(bone_age, patient.age_months, patient.male)
        notes = (*notes, *filter(None, [reason]))
    if header is None:
        return {}, notes
    cells = {
        "sex": {1: "M", 0: "F"}.get(patient.male, ""),
        "chronological_age_months": header.age_months,
        "difference_months": bone_age - header.age_months,
        "laterality": header.laterality,
        "pixel_spacing_mm": np.array(header.spacing_mm) if header.spacing_mm else math.nan,
    }
    return cells | ({SCORE: score} if reference else {}), notes

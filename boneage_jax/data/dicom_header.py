"""What the header of a DICOM file says of the patient: sex, age, side of the body, size of pixels.

Each value is checked; one that cannot be true is left out with a note. Notes hold no value of the
header, since they end up in logs.
"""

import contextlib
import datetime
import io
import math
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from boneage_jax.data.find_files import HEAD
from boneage_jax.data.headers import sniff
from boneage_jax.data.silence import warnings_off

MONTH = 30.4375  # days: a twelfth of 365.25
OLDEST = 120 * 12  # months

WRONG_SEX = "sex of the header is not M, F or O: ignored"
WRONG_AGE = "age of the header cannot be: ignored"
WRONG_DATES = "dates of the header cannot be: ignored"
AGES_DIFFER = "age and birth date of the header contradict each other: neither is used"
WHOLE_YEARS = "age of the header is in whole years"
WRONG_SIDE = "laterality of the header is unknown: ignored"
ADULT = "the header says an adult: bone ages are of children"
OTHER_PART = "body part of the header is no hand"
WRONG_SPACING = "pixel spacing of the header cannot be: ignored"

_TAGS = (
    *("PatientSex", "PatientAge", "PatientBirthDate", "StudyDate", "AcquisitionDate"),
    *("ImageLaterality", "Laterality", "BodyPartExamined"),
    *("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"),
)
_UNITS = {"D": 1 / MONTH, "W": 7 / MONTH, "M": 1.0, "Y": 12.0}  # months, by the unit of an age
_SEXES = {"M": 1, "F": 0, "O": -1}
_SIDES = ("L", "R", "B", "U")
_LARGEST_PIXEL = 10.0  # mm
_ADULT = 20 * 12  # months: skeletons of 19 years are mature
# Defined terms (PS3.16, annex L) and what departments write instead; ? stands for no one text.
_HAND = re.compile(r"HAND|WRIST|FINGER|THUMB|CARP|PHALAN|EXTREM|LIMB|ARM|SKELET|BONE|\?")


class PatientHeader(NamedTuple):
    """What a header says.

    Attributes:
      male: 1, 0, or -1 for unknown.
      age_months: chronological age at the study, months; NaN for unknown.
      laterality: L, R, B (both), U (unpaired) or "".
      spacing_mm: distance of rows and of columns, mm; None for unknown.
      notes: what was left out, or should be known of a value; that the patient is an adult, or the
        body part another.
    """

    male: int = -1
    age_months: float = math.nan
    laterality: str = ""
    spacing_mm: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()


def is_dicom(path: Path) -> bool:
    """Returns whether a file is DICOM, by its first bytes; False if it cannot be read."""
    if not path.is_file():  # opening a pipe may never end
        return False
    try:
        with path.open("rb") as file:
            return _is_dicom(file.read(HEAD), path.name)
    except OSError:
        return False


def _is_dicom(head: bytes, name: str) -> bool:
    """Returns whether a file that begins so and has this name is read as DICOM."""
    form = sniff(head) if head else ""
    return form == "dicom" or (not form and name.lower().endswith((".dcm", ".dicom")))


def read_patient(source: str | os.PathLike[str] | bytes, name: str = "") -> PatientHeader | None:
    """Reads what the header of a DICOM file says of the patient.

    Args:
      source: path of a file, or its content.
      name: name of the file of a content.

    Returns:
      The header, None for a file that is not DICOM. A damaged one says nothing here; reading its
      pixels tells why.
    """
    if not (_is_dicom(source, name) if isinstance(source, bytes) else is_dicom(Path(source))):
        return None
    import pydicom  # takes 0.3 s

    from boneage_jax.data.dicom import check_inflated
    from boneage_jax.data.files import read_bytes

    with warnings_off():
        try:
            data = source if isinstance(source, bytes) else read_bytes(Path(source))
            check_inflated(data)
            dataset = pydicom.dcmread(
                io.BytesIO(data), stop_before_pixels=True, force=True, specific_tags=[*_TAGS]
            )
        except Exception:  # pydicom raises many types on damaged files
            return PatientHeader()
        return patient_of(dataset)


def patient_of(dataset: Any) -> PatientHeader:
    """Returns what a pydicom data set says of the patient."""
    notes: list[str] = []
    sex = _text(dataset, "PatientSex").upper()
    if sex and sex not in _SEXES:
        notes.append(WRONG_SEX)
    sides = [_text(dataset, name).upper() for name in ("ImageLaterality", "Laterality")]
    side = next(filter(None, sides), "")
    if side and side not in _SIDES:
        notes.append(WRONG_SIDE)
        side = ""
    age = _age(dataset, notes)
    if age > _ADULT:
        notes.append(ADULT)
    part = _text(dataset, "BodyPartExamined").upper()
    if part and not _HAND.search(part):
        notes.append(OTHER_PART)
    return PatientHeader(
        _SEXES.get(sex, -1), age, side, _spacing(dataset, notes), tuple(dict.fromkeys(notes))
    )


def _text(dataset: Any, name: str) -> str:
    """Returns the value of an element; "" if it is absent or empty, "?" if it is no one text."""
    try:
        value = dataset.get(name)
    except Exception:  # of many types: an element is converted when it is asked for
        return "?"
    if value is None:
        return ""
    return value.strip(" \0") if isinstance(value, str) else "?"


def _age(dataset: Any, notes: list[str]) -> float:
    """Returns the age in months: from the dates, else from the age in words (AS); NaN if unknown.

    The age in words has a resolution of a year in many files, the dates one of a day. Anonymised
    files keep one and change the other, so both must agree where both can be.
    """
    worded, resolution = _worded_age(_text(dataset, "PatientAge"), notes)
    dated = _dated_age(dataset, notes)
    if math.isnan(dated):
        if resolution == _UNITS["Y"]:
            notes.append(WHOLE_YEARS)
        return worded
    # An age may be rounded up or down, and told at the study or at its request.
    lowest, highest = -resolution / 2 - 1, resolution + 1
    if not math.isnan(worded) and not lowest <= dated - worded <= highest:
        notes.append(AGES_DIFFER)
        return math.nan
    return dated


def _worded_age(text: str, notes: list[str]) -> tuple[float, float]:
    """Returns an age such as 011Y and its unit, both in months; NaN, 0 if unknown."""
    if not text:
        return math.nan, 0.0
    match = re.fullmatch(r"(\d{1,3})([DWMY])", text.upper(), re.ASCII)
    months = int(match[1]) * _UNITS[match[2]] if match else math.inf
    # 000Y is what some systems write for unknown; a child in its first year has months.
    if not match or months > OLDEST or (months == 0 and match[2] == "Y"):
        notes.append(WRONG_AGE)
        return math.nan, 0.0
    return months, _UNITS[match[2]]


def _dated_age(dataset: Any, notes: list[str]) -> float:
    """Returns the months from birth to the study, NaN if they are unknown."""
    birth = _text(dataset, "PatientBirthDate")
    study = _text(dataset, "StudyDate") or _text(dataset, "AcquisitionDate")
    if not birth or not study:
        return math.nan
    born, studied = _date(birth), _date(study)
    months = (studied - born).days / MONTH if born and studied else -1.0
    if not 0 <= months <= OLDEST:
        notes.append(WRONG_DATES)
        return math.nan
    return months


def _date(text: str) -> datetime.date | None:
    """Returns a date such as 20120131 (or 2012.01.31, of old files), None if there is none."""
    match = re.fullmatch(r"(\d{4})(\.?)(\d\d)\2(\d\d)", text, re.ASCII)
    with contextlib.suppress(ValueError):
        return datetime.date(int(match[1]), int(match[3]), int(match[4])) if match else None
    return None


def _spacing(dataset: Any, notes: list[str]) -> tuple[float, float] | None:
    """Returns the distance of rows and of columns in mm: that at the hand, else at the detector."""
    for name in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        try:
            value = dataset.get(name)
            if not value:
                continue
            rows, columns = (float(number) for number in value)
        except Exception:  # of many types, see `_text`
            rows = columns = math.nan
        if 0 < rows < _LARGEST_PIXEL and 0 < columns < _LARGEST_PIXEL:
            return rows, columns
        notes.append(WRONG_SPACING)
    return None

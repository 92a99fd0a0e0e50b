"""What a DICOM header says of the patient, and what is no reason to believe it."""

import math

import numpy as np
import pytest

from boneage_jax.data import dicom_header
from boneage_jax.data.dicom_header import PatientHeader, is_dicom, read_patient
from boneage_jax.data.silence import warnings_off
from tests.support.dicom_files import dicom_file

IMAGE = np.zeros((4, 4), np.uint8)


def read(**tags) -> PatientHeader:
    with warnings_off():  # of what should not be written
        data = dicom_file(IMAGE, **tags)
    found = read_patient(data)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("tags", "months", "note"),
    [
        ({}, math.nan, None),
        ({"PatientAge": ""}, math.nan, None),
        ({"PatientAge": "011Y"}, 132.0, dicom_header.WHOLE_YEARS),
        ({"PatientAge": "140M"}, 140.0, None),
        ({"PatientAge": "008W"}, 56 / 30.4375, None),
        ({"PatientAge": "010D"}, 10 / 30.4375, None),
        # Ten years have 3653 days: leap days in 2004, 2008 and 2012.
        ({"PatientBirthDate": "20031101", "StudyDate": "20131101"}, 3653 / 30.4375, None),
        ({"PatientBirthDate": "2003.11.01", "AcquisitionDate": "20131101"}, 3653 / 30.4375, None),
        ({"PatientBirthDate": "20120301", "StudyDate": "20120301"}, 0.0, None),
        ({"PatientBirthDate": "20120301"}, math.nan, None),  # a study without date
        ({"PatientBirthDate": "20120301", "StudyDate": "20120229"}, math.nan, "dates"),
        ({"PatientBirthDate": "20120230", "StudyDate": "20130101"}, math.nan, "dates"),
        ({"PatientBirthDate": "18000101", "StudyDate": "20130101"}, math.nan, "dates"),
        # Dates that cannot be leave the age in words.
        ({"PatientBirthDate": "0", "StudyDate": "20130101", "PatientAge": "100M"}, 100.0, "dates"),
        ({"PatientAge": "240M"}, 240.0, None),
        ({"PatientAge": "241M"}, 241.0, dicom_header.ADULT),
        ({"PatientAge": "999Y"}, math.nan, "age"),
        ({"PatientAge": "000Y"}, math.nan, "age"),
        ({"PatientAge": "11"}, math.nan, "age"),
        ({"PatientAge": "-11Y"}, math.nan, "age"),
        ({"PatientAge": ["011Y", "012Y"]}, math.nan, "age"),
    ],
)
def test_ages(tags, months, note):
    found = read(**tags)
    assert found.age_months == pytest.approx(months, nan_ok=True)
    texts = {"dates": dicom_header.WRONG_DATES, "age": dicom_header.WRONG_AGE, None: None}
    assert found.notes == tuple(filter(None, [texts.get(note, note)]))


@pytest.mark.parametrize(
    ("words", "agrees"),
    [("009Y", True), ("010Y", True), ("008Y", False), ("011Y", False), ("119M", True)],
)
def test_an_age_and_dates_that_contradict_each_other_are_not_used(words, agrees):
    """Nine years and eleven months: 009Y by completed years, 010Y where it was rounded."""
    found = read(PatientAge=words, PatientBirthDate="20031201", StudyDate="20131101")
    assert found.age_months == pytest.approx(119 if agrees else math.nan, abs=0.1, nan_ok=True)
    assert found.notes == (() if agrees else (dicom_header.AGES_DIFFER,))


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"PatientSex": "M"}, {"male": 1}),
        ({"PatientSex": "f "}, {"male": 0}),
        ({"PatientSex": "O"}, {}),
        ({"PatientSex": ""}, {}),
        ({"PatientSex": "MALE"}, {"notes": (dicom_header.WRONG_SEX,)}),
        ({"PatientSex": ["M", "F"]}, {"notes": (dicom_header.WRONG_SEX,)}),
        ({"Laterality": "L"}, {"laterality": "L"}),
        ({"Laterality": "L", "ImageLaterality": "R"}, {"laterality": "R"}),
        ({"Laterality": "Q"}, {"notes": (dicom_header.WRONG_SIDE,)}),
        *(({"BodyPartExamined": part}, {}) for part in ("", "HAND", "L Wrist", "EXTREMITY")),
        ({"BodyPartExamined": "CHEST"}, {"notes": (dicom_header.OTHER_PART,)}),
        ({"PixelSpacing": [0.1, 0.2]}, {"spacing_mm": (0.1, 0.2)}),
        ({"ImagerPixelSpacing": [0.1, 0.1]}, {"spacing_mm": (0.1, 0.1)}),
        ({"PixelSpacing": [0, 0.1]}, {"notes": (dicom_header.WRONG_SPACING,)}),
        ({"PixelSpacing": [99, 99], "ImagerPixelSpacing": [0.2, 0.2]}, "the other"),
        ({"PixelSpacing": [0.1, 0.1, 0.1]}, {"notes": (dicom_header.WRONG_SPACING,)}),
    ],
)
def test_sex_side_and_spacing(tags, expected):
    if expected == "the other":
        expected = {"spacing_mm": (0.2, 0.2), "notes": (dicom_header.WRONG_SPACING,)}
    found, wanted = read(**tags), PatientHeader(**expected)
    assert found._replace(age_months=0) == wanted._replace(age_months=0)


def test_elements_of_a_wrong_kind_are_ignored():
    """As bytes of the file: explicit VRs that the standard does not give these elements."""
    data = dicom_file(IMAGE, PatientSex="M", PatientAge="011Y", PatientBirthDate="20030101")
    for before, after in (
        (b"\x10\x00\x40\x00CS", b"\x10\x00\x40\x00US"),
        (b"\x10\x00\x10\x10AS", b"\x10\x00\x10\x10UL"),
        (b"\x10\x00\x30\x00DA", b"\x10\x00\x30\x00SQ"),
    ):
        assert data.count(before) == 1
        data = data.replace(before, after)
    found = read_patient(data)
    assert (found.male, found.laterality, found.spacing_mm) == (-1, "", None)
    assert math.isnan(found.age_months)


def test_no_note_holds_a_value_of_the_header():
    found = read(PatientSex="SECRET", PatientAge="SECRET", PatientBirthDate="SECRET", StudyDate="1")
    assert len(found.notes) == 3
    assert "SECRET" not in " ".join(found.notes)


def test_other_files_have_no_header(tmp_path):
    for name, content in (("a.png", b"\x89PNG\r\n\x1a\n"), ("b", b""), ("c.dcm", b"x" * 200)):
        (tmp_path / name).write_bytes(content)
    assert [is_dicom(tmp_path / name) for name in ("a.png", "b", "c.dcm", "none")] == [
        *(False, False, True, False)
    ]
    assert read_patient(tmp_path / "a.png") is None
    assert read_patient(tmp_path / "c.dcm")[0] == -1  # reading its pixels says what is wrong

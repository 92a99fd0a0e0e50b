"""DICOM objects of a reading, as pydicom and highdicom read them and as dciodvfy judges them."""

import dataclasses
import io
import math

import numpy as np
import pydicom
import pytest

from boneage_jax.data.silence import warnings_off
from boneage_jax.errors import InputError
from boneage_jax.report.dicom_objects import (
    AgeFinding,
    hand_segmentation,
    secondary_capture,
    source_header,
    structured_report,
)
from tests.support.dciodvfy import verdict
from tests.support.dicom_files import dicom_file

hd = pytest.importorskip("highdicom", reason="highdicom is not installed (extra 'dicom')")

FINDING = AgeFinding(123.4567, 104.0, 142.9, -8.25, math.nan, True, "L", "lite0")
STUDY = {
    **{"StudyInstanceUID": "1.2.3.4", "SeriesInstanceUID": "1.2.3.5", "StudyID": "1"},
    **{"PatientName": "Müller^Zoë", "PatientID": "7", "PatientSex": "F", "Modality": "CR"},
    **{"PatientBirthDate": "20010101", "StudyDate": "20120101", "StudyTime": "101010"},
    **{"SpecificCharacterSet": "ISO_IR 192", "ImageLaterality": "L"},
}
COPIED = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID")


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "hand.dcm"
    path.write_bytes(dicom_file(np.zeros((40, 30), np.uint8), **STUDY))
    return source_header(path)


def written(dataset) -> pydicom.FileDataset:
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return pydicom.dcmread(io.BytesIO(file.getvalue()))


def items(dataset):
    """All content items of a report."""
    for item in dataset.get("ContentSequence", []):
        yield item
        yield from items(item)


def test_the_report_says_the_age(source):
    report = written(structured_report(source, FINDING))
    with warnings_off():
        content = hd.sr.EnhancedSR.from_dataset(report).content
    (group,) = content.get_image_measurement_groups()
    numbers = {
        m.name.meaning: (m.value, m.unit.value, m.unit.scheme_designator)
        for m in group.get_measurements()
    }
    assert numbers == {
        "XR Bone age": (123.46, "mo", "UCUM"),
        "Lower limit of 95 % interval of bone age": (104.0, "mo", "UCUM"),
        "Upper limit of 95 % interval of bone age": (142.9, "mo", "UCUM"),
        "Bone age minus chronological age": (-8.25, "mo", "UCUM"),
    }
    (judged,) = [e for e in group.get_qualitative_evaluations() if "like those" in e.name.meaning]
    assert judged.value.meaning == "Yes"
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    texts = {item.get("TextValue") for item in items(report)}
    assert {"boneage_jax lite0", "research use only"} <= texts
    references = [i.ReferencedSOPSequence[0] for i in items(report) if i.ValueType == "IMAGE"]
    assert {r.ReferencedSOPInstanceUID for r in references} == {source.SOPInstanceUID}
    for name in COPIED:
        assert report[name].value == source[name].value


def test_the_report_tells_networks_of_one_name_apart(source):
    marked = dataclasses.replace(FINDING, fingerprint="ab" * 32)
    said = []
    for finding in (FINDING, marked):
        report = structured_report(source, finding)
        said.append({item.TextValue for item in items(report) if "TextValue" in item})
    assert said[1] - said[0] == {f"sha256={'ab' * 32}"}


def test_the_report_says_what_the_age_was_read_with(source):
    """The sex may be another than that of the header, and the picture may have been turned."""
    notes = ("turned by 90 degrees: put upright", "inverted: grey levels swapped")
    for male, sex in ((1, "male"), (0, "female"), (-1, "unknown")):
        finding = dataclasses.replace(FINDING, male=male, notes=notes)
        report = structured_report(source, finding)
        texts = {item.TextValue for item in items(report) if "TextValue" in item}
        assert {f"sex={sex}", *(f"note={note}" for note in notes)} <= texts
        assert report.PatientSex == "F"


def test_the_picture_and_the_mask_read_back(source):
    picture = np.random.default_rng(0).integers(0, 256, (20, 50, 3), np.uint8)
    capture = written(secondary_capture(source, picture, "lite0"))
    np.testing.assert_array_equal(capture.pixel_array, picture)
    assert (capture.ConversionType, capture.Laterality) == ("WSD", "L")
    mask = np.zeros((40, 30), bool)
    mask[5:20, 3:9] = True
    segmentation = written(hand_segmentation(source, mask, "unet"))
    np.testing.assert_array_equal(segmentation.pixel_array.squeeze() > 0, mask)
    (segment,) = segmentation.SegmentSequence
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeValue == "85562004"
    for made in (capture, segmentation):
        assert [made[name].value for name in COPIED] == [source[name].value for name in COPIED]


def test_what_no_object_can_refer_to_is_refused(tmp_path, source):
    path = tmp_path / "hand.dcm"
    path.write_bytes(dicom_file(np.zeros((4, 4), np.uint8), PatientName="SECRET"))
    with pytest.raises(InputError, match="the header lacks StudyInstanceUID"):
        source_header(path)
    with pytest.raises(InputError, match="shows no hand"):
        hand_segmentation(source, np.zeros((40, 30), bool), "unet")
    with pytest.raises(InputError, match="another size"):
        hand_segmentation(source, np.ones((30, 40), bool), "unet")


def test_headers_of_old_files_serve_too(tmp_path):
    old = {"StudyDate": "1997.04.24", "StudyTime": "14:04:38.5", "PatientBirthDate": "1990.01.02"}
    with warnings_off():
        data = dicom_file(np.zeros((4, 4), np.uint8), **STUDY | old | {"Modality": ""})
    path = tmp_path / "old.dcm"
    path.write_bytes(data)
    report = written(structured_report(source_header(path), FINDING))
    found = (report.StudyDate, report.StudyTime, report.PatientBirthDate)
    assert found == ("19970424", "140438.5", "19900102")


OTHERS = (
    dataclasses.replace(FINDING, score=-1.23, side="R", accepted=False, fingerprint="ab" * 32),
    dataclasses.replace(FINDING, difference=math.nan, side="", accepted=None),
)


@pytest.mark.parametrize(
    ("left_out", "finding"),
    [
        ((), FINDING),
        (("PatientID", "StudyDate", "StudyTime", "StudyID"), FINDING),
        *(((), finding) for finding in OTHERS),
    ],
)
def test_dciodvfy_finds_no_error(tmp_path, left_out, finding):
    tags = {key: value for key, value in STUDY.items() if key not in left_out}
    path = tmp_path / "hand.dcm"
    path.write_bytes(dicom_file(np.zeros((40, 30), np.uint8), **tags))
    source = source_header(path)
    for kind, made in {
        "EnhancedSR": structured_report(source, finding),
        "SCImage": secondary_capture(source, np.zeros((20, 50, 3), np.uint8), "lite0"),
        "Segmentation": hand_segmentation(source, np.ones((40, 30), bool), "unet"),
    }.items():
        made.save_as(tmp_path / "made.dcm", enforce_file_format=True)
        said = verdict(tmp_path / "made.dcm")
        assert kind in said and not [line for line in said if line.startswith("Error")]

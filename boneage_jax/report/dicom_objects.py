"""DICOM objects of a reading: a Structured Report, a picture and the mask of the hand.

The report follows TID 1500 (PS3.16); its bone age has the LOINC code 85151-9. Codes of the scheme
99BONEAGE are this package's own, for what no public scheme has a code for.
"""

import dataclasses
import io
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

import boneage_jax
from boneage_jax.data.dicom import MAKER, check_inflated
from boneage_jax.data.files import read_bytes
from boneage_jax.data.silence import warnings_off
from boneage_jax.errors import InputError

PURPOSE = "Bone age, research use only"

_SCHEME = "99BONEAGE"
_SEX_USED = {1: "male", 0: "female", -1: "unknown"}
_SERIES = {"sr": 9101, "sc": 9102, "seg": 9103}  # numbers seldom taken by modalities
_NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
_OLD_FORM = re.compile(r"\d{4}\.\d\d\.\d\d|\d\d:\d\d(:\d\d(\.\d+)?)?", re.ASCII)
# Elements of type 2, which must be there but may be empty (PS3.3, C.7.1.1 and C.7.2.1).
_MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("AccessionNumber", "StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName"),
)


@dataclasses.dataclass(frozen=True)
class AgeFinding:
    """What a report says.

    Attributes:
      age, low, high: bone age and its 95 % interval, months.
      difference: bone age minus chronological age, months; NaN if unknown.
      score: standard-deviation score; NaN if unknown.
      accepted: whether the radiograph is like those of training, None if unknown.
      side: L, R or "".
      network: name of the network.
      fingerprint: sha256 that tells networks of this name apart, "" if there is none.
      male: sex that the age was read with: 1, 0, or -1 for the network's own estimate.
      notes: on the file and its age, as `predict` gives them; they hold no value of a header.
    """

    age: float
    low: float
    high: float
    difference: float
    score: float
    accepted: bool | None
    side: str
    network: str
    fingerprint: str = ""
    male: int = -1
    notes: tuple[str, ...] = ()


def source_header(path: Path) -> Any:
    """Reads the header of a radiograph, to which the objects will refer, without its pixels.

    Raises:
      InputError: it lacks an identifier that a reference needs; no value of the header is in the
        message.
    """
    import pydicom

    data = read_bytes(path)
    with warnings_off():
        check_inflated(data)
        dataset = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True, force=True)
        for name in _NEEDED:
            if not dataset.get(name):
                raise InputError(f"the header lacks {name}")
        for name in _MAY_BE_EMPTY:
            if name not in dataset:
                setattr(dataset, name, None)
        for name in ("PatientBirthDate", "StudyDate", "StudyTime"):
            value = str(dataset.get(name) or "")
            if _OLD_FORM.fullmatch(value):  # 2003.11.01, 14:04:38: of ACR-NEMA (PS3.5, 6.2)
                setattr(dataset, name, re.sub("[.:]", "", value, count=2))
        if not dataset.get("Modality"):
            dataset.Modality = "OT"  # other
    return dataset


def structured_report(source: Any, finding: AgeFinding) -> Any:
    """Returns an Enhanced SR of template TID 1500.

    Args:
      source: see `source_header`.
      finding: what it says.
    """
    from highdicom import UID, sr
    from pydicom import Dataset
    from pydicom.sr.codedict import codes
    from pydicom.uid import generate_uid

    def own(value: str, meaning: str) -> Any:
        return sr.CodedConcept(value, _SCHEME, meaning)

    version = boneage_jax.__version__
    algorithm = sr.AlgorithmIdentification(
        name=f"{MAKER} {finding.network}",
        version=version,
        parameters=[
            f"network={finding.network}",
            *([f"sha256={finding.fingerprint}"] if finding.fingerprint else []),
            "interval=95 %",
            f"sex={_SEX_USED[finding.male]}",
            *(f"note={note}" for note in finding.notes),
            "research use only",
        ],
        family=codes.cid7162.ArtificialIntelligence,
        manufacturer=MAKER,
    )
    sides = {"L": codes.SCT.Left, "R": codes.SCT.Right}
    hand = sr.FindingSite(codes.SCT.Hand, laterality=sides.get(finding.side))
    method = own("NetworkRegression", "Regression by a convolutional neural network")
    age = sr.CodedConcept("85151-9", "LN", "XR Bone age")
    months, none = codes.UCUM.Month, codes.UCUM.NoUnits
    measured = (
        (age, finding.age, months),
        (own("AgeLow95", "Lower limit of 95 % interval of bone age"), finding.low, months),
        (own("AgeHigh95", "Upper limit of 95 % interval of bone age"), finding.high, months),
        (own("AgeDiff", "Bone age minus chronological age"), finding.difference, months),
        (codes.DCM.ZScore, finding.score, none),
    )
    judged = []
    if finding.accepted is not None:
        judged = [
            sr.QualitativeEvaluation(
                name=own("Accepted", "Radiograph is like those of training"),
                value=codes.SCT.Yes if finding.accepted else codes.SCT.No,
            )
        ]
    observer = sr.DeviceObserverIdentifyingAttributes(
        uid=generate_uid(entropy_srcs=[MAKER, version]),
        name=MAKER,
        manufacturer_name=MAKER,
        model_name=finding.network,
        serial_number=version,
    )
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(
            observer_device_context=sr.ObserverContext(codes.DCM.Device, observer)
        ),
        procedure_reported=sr.CodedConcept("24724-7", "LN", "XR Bones Views for bone age"),
        imaging_measurements=[
            sr.MeasurementsAndQualitativeEvaluations(
                tracking_identifier=sr.TrackingIdentifier(UID(), "Bone age"),
                finding_type=age,
                method=method,
                algorithm_id=algorithm,
                finding_sites=[hand],
                source_images=[sr.SourceImageForMeasurementGroup.from_source_image(source)],
                measurements=[
                    # Rounded: decimal strings have 16 digits, an age has four.
                    sr.Measurement(name, round(float(value), 2), unit)
                    for name, value, unit in measured
                    if not math.isnan(value)
                ],
                qualitative_evaluations=judged,
            )
        ],
    )
    with warnings_off():
        report = sr.EnhancedSR(
            evidence=[source],
            content=content[0],
            is_complete=True,
            series_description=PURPOSE,
            manufacturer_model_name=finding.network,
            software_versions=version,
            **_numbers("sr"),
        )
        scheme = Dataset()
        scheme.CodingSchemeDesignator = _SCHEME
        scheme.CodingSchemeName = "Codes of boneage_jax"
        scheme.CodingSchemeResponsibleOrganization = MAKER
        report.CodingSchemeIdentificationSequence = [scheme]
    return report


def secondary_capture(source: Any, picture: np.ndarray, network: str) -> Any:
    """Returns a picture, uint8 [H, W, 3] RGB, as a Secondary Capture image of the study.

    Args:
      source: see `source_header`.
      picture: as it is to be shown.
      network: name of the network.
    """
    from highdicom.sc import SCImage
    from pydicom.uid import ExplicitVRLittleEndian

    with warnings_off():
        image: Any = SCImage.from_ref_dataset(
            source,
            pixel_array=picture,
            photometric_interpretation="RGB",
            bits_allocated=8,
            coordinate_system="PATIENT",
            patient_orientation=("L", "F"),  # must be given, is emptied below
            transfer_syntax_uid=ExplicitVRLittleEndian,
            **_numbers("sc"),
        )
        side = source.get("Laterality") or source.get("ImageLaterality")
        image.Laterality = side if side in ("L", "R") else None
        image.PatientOrientation = None  # of type 2: a picture of several parts has none
        image.ConversionType = "WSD"  # made by a program, not scanned
        image.SeriesDescription = PURPOSE
        image.DerivationDescription = f"{network} of {MAKER} {boneage_jax.__version__}"
        if source.get("BurnedInAnnotation"):  # the radiograph is part of the picture
            image.BurnedInAnnotation = source.BurnedInAnnotation
    return image


def hand_segmentation(source: Any, mask: np.ndarray, network: str) -> Any:
    """Returns the mask of the hand, bool [H, W] at the size of the radiograph, as a Segmentation.

    Args:
      source: see `source_header`.
      mask: True is hand.
      network: name of what made the mask.

    Raises:
      InputError: an empty mask, or one of another size.
    """
    from highdicom import AlgorithmIdentificationSequence, seg
    from pydicom.sr.codedict import codes

    if mask.shape != (source.Rows, source.Columns):
        raise InputError("the mask has another size than the radiograph")
    if not mask.any():
        raise InputError("the mask shows no hand")
    version = boneage_jax.__version__
    hand = seg.SegmentDescription(
        segment_number=1,
        segment_label="Hand",
        segmented_property_category=codes.SCT.AnatomicalStructure,
        segmented_property_type=codes.SCT.Hand,
        algorithm_type="AUTOMATIC",
        algorithm_identification=AlgorithmIdentificationSequence(
            name=network, family=codes.cid7162.ArtificialIntelligence, version=version, source=MAKER
        ),
    )
    with warnings_off():
        segmentation = seg.Segmentation(
            source_images=[source],
            pixel_array=mask[None].astype(np.uint8),
            segmentation_type="BINARY",
            segment_descriptions=[hand],
            manufacturer_model_name=network,
            software_versions=version,
            device_serial_number=version,
            content_label="HAND",
            series_description=PURPOSE,
            **_numbers("seg"),
        )
        if "FrameOfReferenceUID" not in source:  # of type 2C: projections have no other place
            segmentation.PatientOrientation = source.get("PatientOrientation")
    return segmentation


def _numbers(kind: str) -> dict[str, Any]:
    """Returns new identifiers of an object that is a series of its own."""
    from highdicom import UID

    return {
        "series_instance_uid": UID(),
        "series_number": _SERIES[kind],
        "sop_instance_uid": UID(),
        "instance_number": 1,
        "manufacturer": MAKER,
    }

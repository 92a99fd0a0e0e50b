"""Writes DICOM objects of each DICOM radiograph: a report, a picture and the mask of the hand."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from boneage_jax.data.file_names import image_stem
from boneage_jax.data.files import read_radiograph
from boneage_jax.errors import InputError
from boneage_jax.inference.output_names import open_folder, output_names
from boneage_jax.inference.outputs import Reading
from boneage_jax.inference.patients import SCORE
from boneage_jax.inference.view import is_turn
from boneage_jax.report.dicom_objects import (
    AgeFinding,
    hand_segmentation,
    secondary_capture,
    source_header,
    structured_report,
)
from boneage_jax.report.overlay import heat_map, shown, side_by_side
from boneage_jax.report.radiograph_page import age_in_words
from boneage_jax.storage.safe_write import in_one_piece

if TYPE_CHECKING:
    from boneage_jax.inference.background_removal import Background
    from boneage_jax.inference.predictor import Predictor

_HEIGHT = 900  # pixels of the picture
_LONGEST = 64  # characters of a name in DICOM (LO); of hf:OWNER/REPO the end tells more


def check_highdicom() -> None:
    """Raises InputError if the package that makes DICOM objects is not installed."""
    if importlib.util.find_spec("highdicom") is None:
        raise InputError("--dicom_out needs pip install 'boneage_jax[dicom]'")


class DicomOutput:
    """Writes FOLDER/NAME_sr.dcm, NAME_sc.dcm and, where there is a mask, NAME_seg.dcm.

    Args:
      folder: existing folder.
      files: all image files, whose names become those of the objects.
      predictor: the network for bone age.
      network: its name.
      fingerprint: see `AgeFinding`.
      masks: finds the hand, where the network itself reads whole radiographs.
    """

    name = "DICOM output"

    def __init__(
        self,
        folder: Path,
        files: Sequence[Path],
        predictor: "Predictor",
        network: str,
        fingerprint: str = "",
        masks: "Background | None" = None,
    ):
        open_folder(folder, files, "--dicom_out")
        self._folder, self._names = folder, output_names(files)
        self._predictor, self._masks = predictor, masks
        self._network, self._fingerprint = network[-_LONGEST:], fingerprint

    def add(self, reading: Reading) -> str:
        """Writes the objects of a radiograph; returns "" or what is wrong with the mask.

        Raises:
          InputError: the file is not DICOM, or its header does not allow an object.
        """
        if reading.patient.header is None:
            raise InputError("the file is not DICOM")
        source = source_header(reading.file)
        image, _ = read_radiograph(reading.file)
        stem = image_stem(reading.file)
        finding = _finding(reading, self._network, self._fingerprint)
        objects = {
            "sr": structured_report(source, finding),
            "sc": secondary_capture(
                source, self._picture(reading, finding, image, stem), self._network
            ),
        }
        background, note = self._masks or self._predictor.background, ""
        if background is not None and any(map(is_turn, reading.notes)):
            note = "no DICOM mask: it would be that of the radiograph before it was put right"
        elif background is not None:
            try:
                mask = background.mask(image, stem)
                objects["seg"] = hand_segmentation(source, mask, "hand mask")
            except InputError as error:
                note = f"no DICOM mask: {error}"
            if not note and stem in background.doubtful:
                note = "the DICOM mask is doubtful: look at it"
        for kind, made in objects.items():
            with in_one_piece(self._folder / f"{self._names[reading.file]}_{kind}.dcm") as part:
                made.save_as(part, enforce_file_format=True)
        return note

    def _picture(
        self, reading: Reading, finding: AgeFinding, image: np.ndarray, stem: str
    ) -> np.ndarray:
        radiograph = shown(image, min(_HEIGHT, 2 * image.shape[0]))
        pictures: list[Any] = [radiograph]
        square = self._predictor.fit(image, stem)
        try:
            moved = self._predictor.contributions(square, reading.patient.male)
        except InputError:  # a network without feature map
            pass
        else:
            height = radiograph.shape[0]
            width = round(height * self._predictor.proportions(image))
            pictures.append(heat_map(square, moved, height, width))
        sex = {1: "male", 0: "female"}.get(finding.male, "not known")
        lines = [
            f"Bone age {age_in_words(finding.age)} = {finding.age:.1f} months, "
            f"95 % interval {finding.low:.0f} to {finding.high:.0f}, read as of sex {sex}",
            f"{self._network}: research use only, not for the care of patients",
        ]
        if finding.accepted is False:
            lines.insert(1, "NOT ACCEPTED: unlike the radiographs of training")
        return side_by_side(pictures, lines)


def _finding(reading: Reading, network: str, fingerprint: str) -> AgeFinding:
    """Returns what the report of a reading says.

    Raises:
      InputError: the network gave no age.
    """
    values = {key: float(value) for key, value in reading.values.items()}
    if not np.isfinite(values["bone_age_months"]):
        raise InputError("there is no age to report")
    accepted, header = values["accepted"], reading.patient.header
    side = header.laterality if header else ""
    return AgeFinding(
        values["bone_age_months"],
        values["low_months"],
        values["high_months"],
        values["bone_age_months"] - reading.patient.age_months,
        float(reading.cells.get(SCORE) or "nan"),
        None if np.isnan(accepted) else bool(accepted),
        side if side in ("L", "R") else "",
        network,
        fingerprint,
        reading.patient.male,
        reading.notes,
    )

"""Writes a page of each radiograph: pictures, age, stress and what is known of the patient."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from boneage_jax.data.file_names import image_stem, normal_name
from boneage_jax.data.files import read_radiograph
from boneage_jax.errors import InputError
from boneage_jax.inference.nearest import References
from boneage_jax.inference.output_names import open_folder, output_names
from boneage_jax.inference.outputs import Reading
from boneage_jax.inference.patients import SCORE
from boneage_jax.inference.stress import stressed_ages
from boneage_jax.report.overlay import heat_map, shown
from boneage_jax.report.radiograph_page import (
    Neighbour,
    RadiographPage,
    age_in_words,
    write_radiograph_page,
)

if TYPE_CHECKING:
    from boneage_jax.inference.predictor import Predictor

_HEIGHT, _THUMBNAIL = 720, 240  # pixels of a picture, and of one of a reference
_SIDES = {"L": "left", "R": "right", "B": "both", "U": "unpaired"}


class ReportOutput:
    """Writes FOLDER/NAME.html.

    Args:
      folder: existing folder.
      files: all image files, whose names become those of the pages.
      predictor: the network for bone age.
      network: its name.
      references: radiographs to show the nearest of; readings then need `features`.
    """

    name = "report"

    def __init__(
        self,
        folder: Path,
        files: Sequence[Path],
        predictor: "Predictor",
        network: str,
        references: References | None = None,
    ):
        open_folder(folder, files, "--report")
        self._folder, self._names = folder, output_names(files)
        self._predictor, self._network, self._references = predictor, network, references

    def add(self, reading: Reading) -> str:
        """Writes the page of a radiograph; returns "".

        Raises:
          InputError: the network gave no age.
        """
        values = {key: float(value) for key, value in reading.values.items()}
        if not math.isfinite(values["bone_age_months"]):
            raise InputError("there is no age to report")
        image, _ = read_radiograph(reading.file)
        square = self._predictor.fit(image, image_stem(reading.file))
        proportions = self._predictor.proportions(image)
        male = reading.patient.male
        pictures = [("Radiograph", shown(image, _HEIGHT))]
        try:
            moved = self._predictor.contributions(square, male)
        except InputError:  # a network without feature map
            pass
        else:
            caption = (
                "What the network reads; the hotter, the more a place moves the age (Grad-CAM)"
            )
            width = round(_HEIGHT * proportions)
            pictures.append((caption, heat_map(square, moved, _HEIGHT, width)))
        page = RadiographPage(
            title=normal_name(reading.file.name),
            network=self._network,
            age=values["bone_age_months"],
            low=values["low_months"],
            high=values["high_months"],
            accepted=None if np.isnan(values["accepted"]) else bool(values["accepted"]),
            facts=_facts(reading, values),
            notes=reading.notes,
            pictures=pictures,
            stress=stressed_ages(self._predictor, square, male, proportions),
            neighbours=self._neighbours(reading),
        )
        write_radiograph_page(self._folder / f"{self._names[reading.file]}.html", page)
        return ""

    def _neighbours(self, reading: Reading) -> list[Neighbour]:
        if self._references is None or reading.features is None:
            return []
        return [
            Neighbour(file.name, age, distance, shown(read_radiograph(file)[0], _THUMBNAIL))
            for file, age, distance in self._references.nearest(reading.file, reading.features)
        ]


def _facts(reading: Reading, values: dict[str, float]) -> list[tuple[str, str]]:
    """Returns the rows of the table of a page."""
    patient, header = reading.patient, reading.patient.header
    facts = [
        ("sex", {1: "male", 0: "female"}.get(patient.male, "unknown")),
        ("probability of male, by the network", f"{values['p_male']:.2f}"),
    ]
    if not math.isnan(patient.age_months):
        months = patient.age_months
        difference = values["bone_age_months"] - months
        facts += [
            ("chronological age", f"{age_in_words(months)} ({months:.1f} months)"),
            ("bone age minus chronological age", f"{difference:+.1f} months"),
        ]
    if reading.cells.get(SCORE):
        facts.append(("standard-deviation score", f"{float(reading.cells[SCORE]):+.2f}"))
    if header and header.laterality:
        facts.append(("side", _SIDES[header.laterality]))
    if header and header.spacing_mm:
        facts.append(("pixel spacing", " × ".join(f"{mm:.4g}" for mm in header.spacing_mm) + " mm"))
    return facts

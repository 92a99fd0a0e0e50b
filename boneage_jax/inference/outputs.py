"""What `predict` writes of each radiograph beside its row: features, a page, DICOM objects."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from boneage_jax.data.reference_table import ReferenceTable
from boneage_jax.errors import InputError
from boneage_jax.inference.feature_file import FeatureFile
from boneage_jax.inference.patients import Patient, patient_cells
from boneage_jax.inference.prediction_text import csv_cells
from boneage_jax.storage.safe_write import is_refused_write


@dataclasses.dataclass(frozen=True)
class Reading:
    """A radiograph and what was read from it.

    Attributes:
      file: the image file.
      values: predictions by column of `Predictor.columns`.
      patient: sex and header.
      cells: the cells on the patient, see `patient_cells`.
      notes: what a user should know of the file or its age.
      features: of the network, float32 [F]; None unless an output needs them.
    """

    file: Path
    values: Mapping[str, Any]
    patient: Patient
    cells: Mapping[str, str]
    notes: tuple[str, ...]
    features: np.ndarray | None = None


class Output(Protocol):
    """Writes files of a reading."""

    name: str

    def add(self, reading: Reading) -> str:
        """Writes what belongs to a radiograph; returns "" or a note on what it leaves out.

        Raises:
          InputError: it cannot be; its text, which holds no value of a header, is the reason.
        """


@dataclasses.dataclass(frozen=True)
class Outputs:
    """All that is wanted beside the table of ages.

    Attributes:
      reference: gives standard-deviation scores.
      features: collects features.
      others: written file by file.
      need_features: whether one of the others needs features.
    """

    reference: ReferenceTable | None = None
    features: FeatureFile | None = None
    others: Sequence[Output] = ()
    need_features: bool = False

    def add(
        self, file: Path, row: Mapping[str, Any], note: str, patient: Patient
    ) -> tuple[dict[str, Any], str]:
        """Writes what belongs to a radiograph.

        An output that fails costs only itself and adds a note, unless no further file can be
        written.

        Args:
          file: the image file.
          row: its predictions, and `features` if they are wanted.
          note: what a user should know of it.
          patient: see `boneage_jax.inference.patients`.

        Returns:
          (cells on the patient, all notes).

        Raises:
          InputError: the disk takes no more files.
        """
        values = {key: value for key, value in row.items() if key != "features"}
        cells, said = patient_cells(
            patient, float(values.get("bone_age_months", np.nan)), self.reference
        )
        notes = tuple(filter(None, (*note.split("; "), *said)))
        if self.features is not None:
            self.features.add(file, row["features"])
        texts = csv_cells(cells)
        reading = Reading(file, values, patient, texts, notes, row.get("features"))
        for output in self.others:
            notes = (*notes, *filter(None, [_attempt(output, reading)]))
        return cells, "; ".join(notes)

    def close(self) -> None:
        """Writes what was collected."""
        if self.features is not None:
            self.features.close()


def _attempt(output: Output, reading: Reading) -> str:
    """Writes an output; returns "" or why it is missing, without any value of a header."""
    try:
        return output.add(reading)
    except InputError as error:
        return f"no {output.name}: {error}"
    except Exception as error:  # of libraries, on headers that nobody has seen
        if is_refused_write(error):
            raise InputError(
                f"the {output.name} of {reading.file} cannot be written: "
                f"{getattr(error, 'strerror', '') or type(error).__name__}"
            ) from error
        if isinstance(error, OSError):
            return f"no {output.name}: {error.strerror or type(error).__name__}"
        return f"no {output.name}: its header does not allow it ({type(error).__name__})"

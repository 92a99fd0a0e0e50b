"""What the service answers: a row of `predict` as JSON, or one line on what is wrong."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field


class Prediction(BaseModel):
    """A row of `predict`; tasks of a user's own have other columns between `file` and `error`."""

    model_config = ConfigDict(extra="allow")

    file: str = Field(description="Name of the file as it was sent")
    bone_age_months: float | None = None
    low_months: float | None = Field(None, description="95 % interval, lower end")
    high_months: float | None = Field(None, description="95 % interval, upper end")
    p_male: float | None = Field(None, description="Probability that the patient is male")
    accepted: bool | None = Field(
        None, description="False if unlike the radiographs of training; null if that is unknown"
    )
    error: str = Field(description="Why the file cannot be read; empty if it was")
    note: str = Field(description="What to know of the file or its age")
    sex: str | None = Field(None, description="Sex that was used: M, F or empty; of DICOM files")
    chronological_age_months: float | None = Field(None, description="By the DICOM header")
    difference_months: float | None = Field(None, description="Bone age minus chronological age")
    laterality: str | None = Field(None, description="L, R, B, U or empty; by the DICOM header")
    pixel_spacing_mm: list[float] | None = Field(None, description="Of rows and of columns")


class Problem(BaseModel):
    """Why a request was refused."""

    error: str = Field(description="One line with the remedy")


class Health(BaseModel):
    """State of the service."""

    status: str
    version: str
    queue: int = Field(description="Requests that are decoded or wait for the network")
    queue_limit: int
    images: int = Field(description="Radiographs read since the start")
    steps: int = Field(description="Steps of the network that this took")


def good_row(
    name: str,
    columns: Sequence[str],
    row: Mapping[str, Any],
    note: str,
    patient: Mapping[str, Any] | None = None,
) -> dict:
    """Returns the answer for a radiograph that was read.

    Args:
      name: of its file.
      columns: names of the predictions.
      row: the predictions.
      note: what to know of it.
      patient: see `boneage_jax.inference.patients.patient_cells`; of a DICOM file.
    """
    numbers = {key: _json_value(row[key]) for key in columns}
    if "accepted" in numbers and numbers["accepted"] is not None:
        numbers["accepted"] = bool(numbers["accepted"])
    header = {key: _json_value(value) for key, value in (patient or {}).items()}
    return {"file": name, **numbers, "error": "", "note": note, **header}


def bad_row(name: str, columns: Sequence[str], judges_images: bool, error: str) -> dict:
    """Returns the answer for a file that cannot be read, as the row of `predict` has it."""
    numbers: dict[str, Any] = dict.fromkeys(columns)
    if judges_images:
        numbers["accepted"] = False
    return {"file": name, **numbers, "error": error, "note": ""}


def _json_value(value: Any) -> Any:
    """Returns a value for JSON, with the digits of `predict`; NaN and infinity become None."""
    if np.ndim(value):  # a vector of a user-defined task
        return [_json_value(part) for part in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.4g}") if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value

"""One prediction as cells of a CSV, as a JSON object, or as text for a person."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_AGES = ("bone_age_months", "low_months", "high_months")


def csv_cells(row: Mapping[str, Any]) -> dict[str, str]:
    """Returns the values of a row as text: numbers with four digits, "" for NaN."""
    return {key: _cell(value) for key, value in row.items()}


def json_line(row: Mapping[str, Any], columns: Sequence[str]) -> str:
    """Returns a row as a JSON object with all `columns`; null for NaN and for what it lacks.

    `error` and `note` are texts, "" where there is none; numbers have six digits.
    """
    texts = {"error": "", "note": ""}
    return json.dumps({key: _json(row[key]) if key in row else texts.get(key) for key in columns})


def text_lines(row: Mapping[str, Any], columns: Sequence[str]) -> list[str]:
    """Returns a row as lines for a person: the age in years and months, and what goes with it.

    Args:
      row: see `boneage_jax.inference.predict_files.predict_files`.
      columns: names of the predictions, `Predictor.columns`; those of a task other than bone age
        are shown as they are.
    """
    if row.get("error"):
        shown = [("error", row["error"])]
    elif not set(_AGES) <= row.keys():
        shown = [(key, _cell(row[key])) for key in columns if key in row]
    else:
        age, low, high = (float(row[key]) for key in _AGES)
        shown = [
            ("bone age", f"{years_and_months(age)} ({age:.1f} months)"),
            ("interval", f"{years_and_months(low)} to {years_and_months(high)}"),
            ("p_male", _cell(row["p_male"])),
            ("accepted", _judgement(row["accepted"])),
            *_compared(row),
        ]
    shown += [("note", row["note"])] if row.get("note") else []
    width = max(9, *(len(name) for name, _ in shown))
    return [str(row["file"]), *(f"  {name:<{width}} {value}" for name, value in shown)]


def _compared(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns lines on the chronological age of a DICOM file, and its score; none if unknown."""
    found = []
    if math.isfinite(row.get("difference_months", math.nan)):
        age = years_and_months(row["chronological_age_months"])
        found.append(
            (
                "difference",
                f"{row['difference_months']:+.1f} months from the chronological age, {age}",
            )
        )
    if math.isfinite(row.get("sd_score", math.nan)):
        found.append(("sd_score", f"{row['sd_score']:+.2f}"))
    return found


def years_and_months(months: float) -> str:
    """Returns an age in words, rounded to whole months, e.g. 9 years 4 months."""
    if not math.isfinite(months):
        return "unknown"
    years, rest = divmod(round(months), 12)
    parts = [(years, "year"), (rest, "month")]
    words = [f"{n} {word}{'' if n == 1 else 's'}" for n, word in parts if n]
    return " ".join(words) or "0 months"


def _judgement(accepted: Any) -> str:
    if np.isnan(accepted):
        return "unknown"
    return "yes" if accepted else "no: do not rely on this age"


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    if np.ndim(value):  # a vector of a user-defined task
        return " ".join(_cell(part) for part in np.ravel(value))
    if isinstance(value, bool | np.bool_):
        return str(bool(value))
    if np.issubdtype(np.asarray(value).dtype, np.floating):
        return "" if np.isnan(value) else f"{value:.4g}"
    return str(value)


def _json(value: Any) -> Any:
    if np.ndim(value):
        return [_json(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value

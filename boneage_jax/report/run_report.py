"""Writes the report of a run: report.json, report.html, predictions.csv and figures/."""

import csv
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from boneage_jax.data.source import Split
from boneage_jax.errors import InputError
from boneage_jax.json_file import read_json
from boneage_jax.report.page import summary_lines, write_page
from boneage_jax.storage.layout import REPORT
from boneage_jax.storage.safe_write import write_text, writing

_FIRST_COLUMNS = ("id", "true_age", "predicted_age", "male", "p_male")


def write_report(
    workdir: Path,
    report: dict[str, Any],
    predictions: Mapping[str, np.ndarray],
    title: str,
    split: Split | None = None,
) -> None:
    """Writes predictions.csv, figures/, report.html and, last, report.json.

    Each file is complete or absent; if report.json exists, so do the others.

    Args:
      workdir: an existing folder.
      report: contents of report.json; NumPy scalars and arrays become JSON numbers and lists.
      predictions: one row per image: `id`, and depending on the task `true_age` and
        `predicted_age` in months, `male` (1, 0, -1 unknown), `p_male`. Arrays of more than one
        axis are not written.
      title: headline of the page.
      split: images of the predictions, in the same order, for drawing masks over them.

    Raises:
      InputError: the report holds NaN or an infinity (the training diverged), or a file cannot be
        written.
    """
    # Loads matplotlib, which takes a second that a run has to spare only at its end.
    from boneage_jax.report.figures import draw_figures
    from boneage_jax.report.mask_figures import draw_mask_figures

    report = json_safe(report)
    with writing(workdir / "predictions.csv"):
        write_text(workdir / "predictions.csv", predictions_csv(predictions))
    folder = workdir / "figures"
    with writing(folder):
        figures = draw_figures(folder, dict(predictions), report, title)
        if "p_hand" in predictions and split is not None:
            figures = draw_mask_figures(folder, dict(predictions), split, title) + figures
    with writing(workdir / "report.html"):
        write_page(workdir / "report.html", report, figures, title)
    text = json.dumps(report, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    with writing(workdir / "report.json"):
        write_text(workdir / "report.json", text + "\n")


def read_report(folder: Path) -> dict[str, Any]:
    """Reads the report.json of a run.

    Raises:
      InputError: the file is missing or damaged.
    """
    path = folder / REPORT
    remedy = "remove it and start the training again, which writes it from the checkpoint"
    try:
        report = read_json(path)
    except FileNotFoundError:
        raise InputError(f"{path} is missing: the run has not ended") from None
    except InputError as error:
        raise InputError(f"{error}; {remedy}") from error
    try:
        for group in ("dataset", "compute", "config"):
            dict(report[group])
        list(report["curve"])
        float(report["compute"]["train_flops"])
        summary_lines(report)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({error!r}); {remedy}") from error
    return report


def json_safe(value: Any, name: str = "report") -> Any:
    """Returns `value` with NumPy scalars, arrays, tuples and paths as plain JSON values.

    Args:
      value: dicts with string keys, lists, tuples, arrays, numbers, strings, None, paths.
      name: path of `value`, for the message.

    Raises:
      InputError: a number is NaN or infinite.
      TypeError: a value of another type.
    """
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): json_safe(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item, f"{name}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(
            f"{name} is {value}: the training diverged; lower config.optimizer.learning_rate"
        )
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise TypeError(f"{name} is a {type(value).__name__}, which has no place in JSON")


def predictions_csv(predictions: Mapping[str, np.ndarray]) -> str:
    """Returns a CSV with one line per image; floats with four decimals, ids as text."""
    columns = [name for name in _FIRST_COLUMNS if name in predictions]
    columns += sorted(predictions.keys() - set(columns))
    columns = [name for name in columns if np.ndim(predictions[name]) == 1]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    values = [[_cell(value) for value in np.asarray(predictions[name])] for name in columns]
    writer.writerows(zip(*values, strict=True))
    return text.getvalue()


def _cell(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return f"{value:.4f}" if isinstance(value, float | np.floating) else str(value)

"""Tables of a sweep: one row per run, one per arm and budget, and the best recipes."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from boneage_jax.errors import InputError
from boneage_jax.experiments.bootstrap import Predictions, align, compare, read_predictions
from boneage_jax.experiments.sweep_figure import draw_sweep
from boneage_jax.report.run_report import read_report
from boneage_jax.storage.layout import REPORT
from boneage_jax.storage.safe_write import write_text

RUN_COLUMNS = (
    *("arm", "overrides", "budget", "seed", "mae", "mae_low", "mae_high", "bias", "rmse"),
    *("baseline_mae", "sex_accuracy", "train_flops", "mask_flops", "eval_flops"),
    *("flops_per_prediction", "steps", "seconds", "images_per_second", "error"),
)
_IDENTITY = ("budget", "seed")  # of a run, beside its arm
SUMMARY_COLUMNS = (
    *("arm", "budget", "runs", "mae", "sd", "low", "high", "train_flops", "baseline_mae"),
    *("difference", "difference_low", "difference_high", "p"),
)


def run_folder(output: Path, arm: str, budget: float, seed: int) -> Path:
    """Returns the workdir of one run of the sweep in `output`."""
    return output / "runs" / f"{arm}-{budget:g}-{seed}"


def read_point(folder: Path) -> dict[str, Any]:
    """Returns the columns of a finished run from its report.json.

    Raises:
      InputError: the report is damaged.
    """
    path = folder / REPORT
    try:
        report = read_report(folder)
        age, compute = report["age"], report["compute"]
        row = {key: age[key] for key in RUN_COLUMNS if key in age}
        row |= {key: compute[key] for key in RUN_COLUMNS if key in compute}
        row["steps"] = report["curve"][-1]["step"]
    except (KeyError, TypeError, IndexError) as error:
        raise InputError(f"{path} is damaged ({error}); remove the run and start again") from error
    if "sex" in report:
        row["sex_accuracy"] = report["sex"]["accuracy"]
    return row


def summarize(rows: Sequence[Mapping[str, Any]], output: Path) -> list[dict[str, Any]]:
    """Summarizes runs: one row per arm and budget, in the order of `rows`.

    Holds the mean over seeds with its 95 % interval (Student's t; absent for one seed), and the
    difference from the arm of the first row at the same budget, see
    `boneage_jax.experiments.bootstrap.compare`. Where all runs of that arm failed there is no
    difference: another arm would be another question.
    """
    done = [row for row in rows if not row.get("error")]
    groups: dict[tuple[float, str], list[Mapping[str, Any]]] = {}
    for row in done:
        groups.setdefault((float(row["budget"]), str(row["arm"])), []).append(row)
    reference = str(rows[0]["arm"]) if rows else ""
    predictions = {key: _predictions(group, output) for key, group in groups.items()}
    summary = []
    for (budget, arm), group in groups.items():
        errors = np.array([float(row["mae"]) for row in group])
        found: dict[str, Any] = {"arm": arm, "budget": budget, "runs": len(errors)}
        found |= {"mae": errors.mean()} | _interval(errors)
        for key in ("train_flops", "baseline_mae"):
            found[key] = float(np.mean([float(row[key]) for row in group]))
        if arm != reference and (budget, reference) in predictions:
            a, b = predictions[budget, reference], predictions[budget, arm]
            compared = compare(a, align(b, a.ids, a.true, (reference, arm)))
            found |= {key: compared[key] for key in SUMMARY_COLUMNS if key in compared}
        summary.append(found)
    return summary


def _interval(errors: np.ndarray) -> dict[str, float]:
    import scipy.stats

    n = len(errors)
    if n < 2:
        return {}
    sd = float(errors.std(ddof=1))
    half = float(scipy.stats.t.ppf(0.975, n - 1)) * sd / n**0.5
    return {"sd": sd, "low": errors.mean() - half, "high": errors.mean() + half}


def _predictions(group: Sequence[Mapping[str, Any]], output: Path) -> Predictions:
    runs = [(str(row["arm"]), float(row["budget"]), int(row["seed"])) for row in group]
    return read_predictions([run_folder(output, *run) for run in runs])


def write_table(
    path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], digits: int = 6
) -> None:
    """Writes a CSV atomically; floats with `digits` significant digits, integers in full."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: _cell(value, digits) for key, value in row.items()})
    write_text(path, text.getvalue())


def _cell(value: Any, digits: int) -> Any:
    return f"{value:.{digits}g}" if isinstance(value, float | np.floating) else value


def read_table(path: Path) -> list[dict[str, str]]:
    """Reads a table written by `write_table`.

    Raises:
      InputError: the file does not exist, cannot be read, or is not the table of a sweep.
    """
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        if not rows:
            raise ValueError("no run")
        for row in rows:
            needed = _IDENTITY if row["error"] else (*_IDENTITY, "mae", "train_flops")
            if not all(math.isfinite(float(row[key])) for key in needed) or not row["arm"]:
                raise ValueError("a cell is no number")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (csv.Error, KeyError, TypeError, ValueError) as error:  # includes text not of UTF-8
        raise InputError(f"{path} is not of a sweep, or damaged ({error}); remove it") from error
    return rows


def best_recipes(summary: Sequence[Mapping[str, Any]]) -> str:
    """Returns a Markdown table of the best arm at each budget and what its FLOPs gained.

    Months per PFLOP are the months of error that a run removes, relative to predicting the mean age
    of the training split, divided by the PFLOPs of its training. The marginal value is the same
    between one budget and the next: the gain from additional FLOPs.
    """
    lines = [
        "| TFLOP trained | best recipe | error (months) | 95 % interval | months per PFLOP | from "
        "the budget before |",
        "|---|---|---|---|---|---|",
    ]
    before: tuple[float, float] | None = None
    for budget in sorted({row["budget"] for row in summary}):
        row = min((r for r in summary if r["budget"] == budget), key=lambda r: r["mae"])
        flops, error = row["train_flops"] / 1e15, row["mae"]
        interval = f"{row['low']:.2f} – {row['high']:.2f}" if "low" in row else "one seed"
        gained = f"{(row['baseline_mae'] - error) / flops:,.0f}"
        more = f"{(before[1] - error) / (flops - before[0]):,.1f}" if before else ""
        lines.append(
            f"| {flops * 1e3:.3g} | {row['arm']} | {error:.2f} | {interval} | {gained} | {more} |"
        )
        before = flops, error
    return "\n".join(lines) + "\n"


def write_summary(output: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes the tables and the figure of all runs so far."""
    write_table(output / "runs.csv", rows, RUN_COLUMNS, digits=12)
    summary = summarize(rows, output)
    write_table(output / "summary.csv", summary, SUMMARY_COLUMNS)
    if summary:
        (output / "best.md").write_text(best_recipes(summary))
        draw_sweep(output / "mae_vs_flops.png", summary)

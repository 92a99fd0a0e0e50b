"""HTML page of a report, from templates/, and its summary for the terminal."""

import base64
import functools
import json
from pathlib import Path
from typing import Any

from boneage_jax.storage.safe_write import write_text

_CAPTIONS = {
    "age_scatter": "Predicted against true bone age. On the line a prediction is exact.",
    "bland_altman": "Difference against mean of predicted and true bone age (Bland–Altman). The "
    "lines are the bias and the limits of agreement, which hold 95 % of normal errors.",
    "error_by_age": "Mean absolute error by true bone age and sex. Whiskers: 95 % interval of the "
    "mean, for five images or more.",
    "sex_confusion": "Predicted sex for each true sex, from the radiograph alone.",
    "sex_calibration": "How often the probability of male comes true, in tenths of it.",
    "masks": "Worst, median and best masks of the split, at the size the network reads.",
    "dice": "Dice of every image, sorted: the left end shows what goes wrong.",
    "learning_curve": "Validation error over the compute spent on training.",
}


def write_page(path: Path, report: dict[str, Any], figures: list[Path], title: str) -> None:
    """Writes a report as one self-contained HTML file, atomically.

    Args:
      path: the HTML file.
      report: contents of report.json; groups that are absent are left out of the page.
      figures: PNG files, embedded in this order.
      title: headline.
    """
    import jinja2

    pages = jinja2.Environment(
        loader=jinja2.PackageLoader("boneage_jax.report"),
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    pages.filters |= {
        "duration": _duration,
        "flops": readable_flops,
        "json": functools.partial(json.dumps, indent=2),
        "leaves": _leaves,
        "number": format,
        "plain": _value,
    }
    page = pages.get_template("report.html").render(
        title=title,
        figures=[_figure(path) for path in figures],
        sex_names=_SEX_NAMES,
        own={name: report[name] for name in _own_groups(report)},
        **{name: report.get(name) for name in _KNOWN},
    )
    write_text(path, page)


def _before_atlas(age: dict[str, Any]) -> str:
    """Returns the error of the network's own ages, if they were moved to those of an atlas."""
    before = age.get("mae_before_atlas")
    return "" if before is None else f"; before config.test_atlas {before:.2f}"


def summary_lines(report: dict[str, Any]) -> list[str]:
    """Returns the result of a run as a few lines of plain text, for the terminal."""
    lines = []
    if age := report.get("age"):
        lines.append(
            f"bone age: MAE {age['mae']:.2f} months (95 % interval {age['mae_low']:.2f} to "
            f"{age['mae_high']:.2f}{_before_atlas(age)}), RMSE {age['rmse']:.2f}, "
            f"bias {age['bias']:+.2f}, {age['within_12']:.0%} within 12 months; "
            f"predicting the training mean: {age['baseline_mae']:.2f}"
        )
        if age["mae"] >= age["baseline_mae"]:
            lines.append("this is no better than predicting the mean age of training")
    if sex := report.get("sex"):
        known = [f"{name} {sex[key]:.3f}" for key, name in _SEX_NAMES if key in sex]
        lines.append(f"sex: {', '.join(known)}")
    if mask := report.get("mask"):
        values = [f"{name} {_value(value)}" for name, value in _leaves(mask)]
        lines.append(f"mask: {', '.join(values)}")
    for name in _own_groups(report):
        values = [f"{key} {_value(value)}" for key, value in _leaves(report[name])]
        lines.append(f"{name.replace('_', ' ')}: {', '.join(values)}")
    if compute := report.get("compute"):
        line = f"compute: {readable_flops(compute['train_flops'])} of training"
        if "images_per_second" in compute:
            line += f", {compute['images_per_second']:.3g} images/s"
        lines.append(line)
    return lines


def in_unit(flops: float) -> tuple[float, str]:
    """Returns the unit that fits a number of FLOPs, as (FLOPs per unit, name of the unit)."""
    units = ((1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"))
    return next((unit for unit in units if flops >= unit[0]), (1.0, "FLOP"))


def readable_flops(flops: float) -> str:
    """Returns a number of FLOPs with three digits and a unit, e.g. 1.23 PFLOP."""
    factor, unit = in_unit(flops)
    number = flops / factor
    return f"{number:.{max(0, 2 - len(str(int(number))) + 1)}f} {unit}"


_KNOWN = ("age", "sex", "mask", "stress", "dataset", "compute", "curve", "config")
_SEX_NAMES = (
    ("accuracy", "accuracy"),
    ("precision", "precision"),
    ("recall", "recall"),
    ("f1", "F1"),
    ("auc", "AUC"),
)


def _own_groups(report: dict[str, Any]) -> list[str]:
    """Returns the groups added by a user-defined task."""
    return [name for name in report if name not in _KNOWN and isinstance(report[name], dict)]


def _figure(path: Path) -> tuple[str, str]:
    """Returns caption and base64 content of a PNG file."""
    caption = _CAPTIONS.get(path.stem, path.stem.replace("_", " "))
    return caption, base64.b64encode(path.read_bytes()).decode("ascii")


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _leaves(tree: dict[str, Any], above: str = "") -> list[tuple[str, Any]]:
    """Returns the values of nested dicts, each with its path in words."""
    found: list[tuple[str, Any]] = []
    for name, value in tree.items():
        words = f"{above} {name}".strip().replace("_", " ")
        found += _leaves(value, words) if isinstance(value, dict) else [(words, value)]
    return found


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"

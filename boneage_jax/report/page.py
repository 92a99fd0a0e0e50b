"""The HTML page of a report, and the lines that a door prints of it.

One file: style and images are inside, no script, nothing is fetched.
"""

import base64
import html
import json
from collections.abc import Callable, Iterable, Sequence
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
    "masks": "Worst, median and best masks of the split, at the size the network reads.",
    "dice": "Dice of every image, sorted: the left end shows what goes wrong.",
    "learning_curve": "Validation error over the compute spent on training.",
}
_STYLE = """
:root { color-scheme: light dark; --ink: #1c2126; --soft: #5c6670; --line: #d8dde2;
  --paper: #ffffff; --panel: #f4f6f8; --accent: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #9aa5b0; --line: #343b42;
  --paper: #14181c; --panel: #1d2328; --accent: #56b4e9; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 64rem; color: var(--ink);
  background: var(--paper); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; border-bottom: 2px solid var(--accent);
  padding-bottom: .2rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; color: var(--soft); font-weight: 600; }
.cards { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); }
.card { background: var(--panel); border-radius: .5rem; padding: .8rem 1rem; }
.card b { display: block; font-size: 1.3rem; line-height: 1.3; }
.card span { color: var(--soft); font-size: .85rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th:first-child, td:first-child { text-align: left; }
th { color: var(--soft); font-weight: 600; }
td:first-child { white-space: nowrap; }
.pairs td:first-child { white-space: normal; }
.pairs td:last-child { text-align: left; overflow-wrap: anywhere; }
.figures { display: grid; gap: 1.2rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); }
figure { margin: 0; }
figure img { width: 100%; height: auto; border-radius: .5rem; background: #fff;
  border: 1px solid var(--line); }
figcaption { color: var(--soft); font-size: .85rem; margin-top: .3rem; }
details { margin-top: .8rem; }
summary { cursor: pointer; color: var(--accent); }
pre { background: var(--panel); border-radius: .5rem; padding: 1rem; overflow-x: auto;
  font-size: .82rem; line-height: 1.45; }
"""

Row = Sequence[Any]


def write_page(path: Path, report: dict[str, Any], figures: list[Path], title: str) -> None:
    """Writes a report as one self-contained HTML file, complete or not at all.

    Args:
      path: of the HTML file.
      report: the content of report.json; groups that are absent are left out of the page.
      figures: PNG files, embedded in this order.
      title: headline.
    """
    parts = [f"<h1>{_text(title)}</h1>", _cards(report)]
    if figures:
        parts.append(f'<h2>Figures</h2><div class="figures">{"".join(map(_figure, figures))}</div>')
    sections: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
        ("age", "Bone age", _age),
        ("sex", "Sex", _sex),
        ("mask", "Hand mask", _group),
        *((name, name.replace("_", " ").capitalize(), _group) for name in _own_groups(report)),
        ("dataset", "Data set", _dataset),
        ("compute", "Compute", _compute),
        ("curve", "Evaluations during training", _curve),
        ("config", "Config", _config),
    )
    for key, headline, section in sections:
        if report.get(key):
            parts.append(f"<section><h2>{headline}</h2>{section(report[key])}</section>")
    page = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body>{chr(10).join(parts)}</body></html>\n"
    )
    write_text(path, page)


def summary_lines(report: dict[str, Any]) -> list[str]:
    """The result of a run in a few lines of plain text, for the terminal."""
    lines = []
    if age := report.get("age"):
        lines.append(
            f"bone age: MAE {age['mae']:.2f} months (95 % interval {age['mae_low']:.2f} to "
            f"{age['mae_high']:.2f}), RMSE {age['rmse']:.2f}, bias {age['bias']:+.2f}, "
            f"{age['within_12']:.0%} within 12 months; "
            f"predicting the training mean: {age['baseline_mae']:.2f}"
        )
    if sex := report.get("sex"):
        known = [f"{name} {sex[key]:.3f}" for key, name in _SEX_NAMES if key in sex]
        lines.append(f"sex: {', '.join(known)}")
    if mask := report.get("mask"):
        values = [f"{' '.join(names)} {_value(value)}" for names, value in _leaves(mask)]
        lines.append(f"mask: {', '.join(values)}")
    for name in _own_groups(report):
        values = [f"{' '.join(names)} {_value(value)}" for names, value in _leaves(report[name])]
        lines.append(f"{name.replace('_', ' ')}: {', '.join(values)}")
    if compute := report.get("compute"):
        line = f"compute: {readable_flops(compute['train_flops'])} of training"
        if "images_per_second" in compute:
            line += f", {compute['images_per_second']:.3g} images/s"
        lines.append(line)
    return lines


def in_unit(flops: float) -> tuple[float, str]:
    """The unit that fits a number of FLOPs, as (FLOPs of one unit, its name)."""
    units = ((1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"))
    return next((unit for unit in units if flops >= unit[0]), (1.0, "FLOP"))


def readable_flops(flops: float) -> str:
    """A number of FLOPs with three digits and a unit: 1.23 PFLOP."""
    factor, unit = in_unit(flops)
    number = flops / factor
    return f"{number:.{max(0, 2 - len(str(int(number))) + 1)}f} {unit}"


_KNOWN = ("age", "sex", "mask", "dataset", "compute", "curve", "config")
_SEX_NAMES = (
    ("accuracy", "accuracy"),
    ("precision", "precision"),
    ("recall", "recall"),
    ("f1", "F1"),
    ("auc", "AUC"),
)


def _cards(report: dict[str, Any]) -> str:
    cards: list[tuple[str, str]] = []
    if age := report.get("age"):
        interval = f"{age['mae_low']:.2f}–{age['mae_high']:.2f}"
        cards += [
            (f"{age['mae']:.2f} months", f"mean absolute error (95 % {interval})"),
            (f"{age['baseline_mae']:.1f} months", "error of predicting the training mean"),
            (f"{age['within_12']:.0%}", "of images within 12 months"),
        ]
    if sex := report.get("sex"):
        cards.append((f"{sex['accuracy']:.1%}", "sex accuracy"))
    if mask := report.get("mask"):
        cards += [(_value(v), f"mask {' '.join(names)}") for names, v in _leaves(mask)][:4]
    if compute := report.get("compute"):
        cards.append((readable_flops(compute["train_flops"]), "training compute"))
        if "images_per_second" in compute:
            cards.append((f"{compute['images_per_second']:.3g}", "images/s in training"))
    inner = (f'<div class="card"><b>{_text(b)}</b><span>{_text(s)}</span></div>' for b, s in cards)
    return f'<div class="cards">{"".join(inner)}</div>'


def _age(age: dict[str, Any]) -> str:
    interval = f"{age['mae_low']:.2f} to {age['mae_high']:.2f}"
    overall = [
        ("mean absolute error", f"{age['mae']:.2f} months"),
        ("its 95 % interval (bootstrap over images)", f"{interval} months"),
        ("root mean squared error", f"{age['rmse']:.2f} months"),
        ("bias, predicted − true", f"{age['bias']:+.2f} months"),
        ("within 6 months", f"{age['within_6']:.1%}"),
        ("within 12 months", f"{age['within_12']:.1%}"),
        ("error of predicting the training mean", f"{age['baseline_mae']:.2f} months"),
    ]
    parts = [_pairs(overall)]
    head = ("images", "MAE (months)", "bias (months)")

    def cells(group: dict[str, Any]) -> Row:
        return f"{group['n']:,}", f"{group['mae']:.2f}", f"{group['bias']:+.2f}"

    if groups := age.get("by_sex"):
        rows = [(name, *cells(group)) for name, group in groups.items()]
        parts.append("<h3>By sex</h3>" + _table(("sex", *head), rows))
    if bands := age.get("by_age"):
        rows = [(f"{band['low']} to {band['high']}", *cells(band)) for band in bands]
        parts.append("<h3>By true bone age</h3>" + _table(("months", *head), rows))
    return "".join(parts)


def _sex(sex: dict[str, Any]) -> str:
    named = [(name, f"{sex[key]:.3f}") for key, name in _SEX_NAMES if key in sex]
    parts = [
        _pairs([(f"{n} (of male)" if n in ("precision", "recall") else n, v) for n, v in named])
    ]
    if all(name in sex for name in ("female", "male")):
        rows = [
            (name, *(f"{sex[name][k]:.3f}" if k in sex[name] else "–" for k in _PER_CLASS))
            for name in ("female", "male")
        ]
        parts.append("<h3>By class</h3>" + _table(("sex", *_PER_CLASS), rows))
    if "confusion_matrix" in sex:
        names = ("female", "male")
        rows = [
            (f"true {name}", *(f"{n:,}" for n in counts))
            for name, counts in zip(names, sex["confusion_matrix"], strict=True)
        ]
        head = ("", "predicted female", "predicted male")
        parts.append("<h3>Confusion matrix</h3>" + _table(head, rows))
    return "".join(parts)


_PER_CLASS = ("precision", "recall")


def _group(group: dict[str, Any]) -> str:
    return _pairs([(" ".join(names), _value(value)) for names, value in _leaves(group)])


def _own_groups(report: dict[str, Any]) -> list[str]:
    """Groups that a task of the user's own has added."""
    return [name for name in report if name not in _KNOWN and isinstance(report[name], dict)]


def _dataset(dataset: dict[str, Any]) -> str:
    rows = [
        (key.replace("_", " "), _value(value))
        for key, value in dataset.items()
        if key != "splits" and value != ""
    ]
    rows += [(f"images in {name}", f"{n:,}") for name, n in dataset.get("splits", {}).items()]
    return _pairs(rows)


def _compute(compute: dict[str, Any]) -> str:
    names = {
        "train_flops": "training",
        "prepare_flops": "preparing the data",
        "mask_flops": "hand masks",
        "eval_flops": "evaluations",
        "flops_per_prediction": "one prediction",
    }
    rows: list[Row] = [
        (f"FLOPs: {name}", readable_flops(compute[key]))
        for key, name in names.items()
        if compute.get(key)
    ]
    if "parameters" in compute:
        rows.append(("parameters", f"{compute['parameters']:,}"))
    if "images_per_second" in compute:
        rows.append(("images/s in training", f"{compute['images_per_second']:.3g}"))
    if "seconds" in compute:
        rows.append(("time", _duration(compute["seconds"])))
    for names_of, value in _leaves(compute.get("hardware", {})):
        rows.append((" ".join(names_of).replace("_", " "), _value(value)))
    parts = [_pairs(rows)]
    if versions := compute.get("versions"):
        parts.append(_details("Versions", _pairs(list(versions.items()))))
    return "".join(parts)


def _curve(curve: list[dict[str, Any]]) -> str:
    metrics = [name for name in curve[0] if name not in ("step", "flops")]
    rows = [
        (f"{point['step']:,}", readable_flops(point["flops"]), *(_value(point[m]) for m in metrics))
        for point in curve
    ]
    head = ("step", "FLOPs", *("MAE (months)" if name == "mae" else name for name in metrics))
    return _details(f"{len(curve)} evaluations", _table(head, rows))


def _config(config: dict[str, Any]) -> str:
    return _details("Every key of the run", f"<pre>{_text(json.dumps(config, indent=2))}</pre>")


def _figure(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    caption = _CAPTIONS.get(path.stem, path.stem.replace("_", " "))
    return (
        f'<figure><img alt="{_text(caption)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{_text(caption)}</figcaption></figure>"
    )


def _details(summary: str, inner: str) -> str:
    return f"<details><summary>{_text(summary)}</summary>{inner}</details>"


def _pairs(rows: Iterable[Row]) -> str:
    return f'<div class="wide"><table class="pairs">{_body(rows)}</table></div>'


def _table(head: Row, rows: Iterable[Row]) -> str:
    cells = "".join(f"<th>{_text(cell)}</th>" for cell in head)
    return f'<div class="wide"><table><tr>{cells}</tr>{_body(rows)}</table></div>'


def _body(rows: Iterable[Row]) -> str:
    lines = ("".join(f"<td>{_text(cell)}</td>" for cell in row) for row in rows)
    return "".join(f"<tr>{line}</tr>" for line in lines)


def _text(value: Any) -> str:
    return html.escape(str(value), quote=True)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _leaves(tree: dict[str, Any], above: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """The values of nested dicts with the names that lead to them."""
    found: list[tuple[tuple[str, ...], Any]] = []
    for name, value in tree.items():
        names = (*above, str(name).replace("_", " "))
        found += _leaves(value, names) if isinstance(value, dict) else [(names, value)]
    return found


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"

"""Grids of runs: every arm at every budget from every seed, each an ordinary run of its own.

A point is a subprocess, so one that fails costs only itself. What is done is kept: a sweep started
again reads the finished points and goes on with the others.
"""

import csv
import dataclasses
import importlib.util
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from boneage_jax.config import check_config, differences, load_config
from boneage_jax.errors import InputError
from boneage_jax.experiments.bootstrap import Predictions, align, compare, read_predictions

Arms = dict[str, dict[str, Any]]
RUN_COLUMNS = (
    *("arm", "overrides", "budget", "seed", "mae", "mae_low", "mae_high", "bias", "rmse"),
    *("baseline_mae", "sex_accuracy", "train_flops", "mask_flops", "eval_flops"),
    *("flops_per_prediction", "steps", "seconds", "images_per_second", "error"),
)
SUMMARY_COLUMNS = (
    *("arm", "budget", "runs", "mae", "sd", "low", "high", "train_flops", "baseline_mae"),
    *("difference", "difference_low", "difference_high", "p"),
)
# Two-sided 95 % quantiles of Student's t for 1 to 10 degrees of freedom.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


@dataclasses.dataclass(frozen=True)
class Point:
    """One run of a sweep; `budget` in FLOPs is 0 where the recipe's own length stands."""

    arm: str
    overrides: tuple[tuple[str, Any], ...]
    budget: float
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.arm}-{self.budget:g}-{self.seed}"

    @property
    def changes(self) -> dict[str, Any]:
        """All keys of the config that differ from the recipe."""
        given = dict(self.overrides) | {"seed": self.seed}
        return given | ({"budget_flops": self.budget} if self.budget else {})


def load_arms(path: Path) -> Arms:
    """Reads `get_arms()` of a Python file: overrides of config keys by the name of an arm.

    Raises:
      InputError: no such file, no such function, or names and overrides of another form.
    """
    spec = importlib.util.spec_from_file_location("arms", path) if path.is_file() else None
    if spec is None or spec.loader is None:
        raise InputError(f"--arms={path}: there is no such Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        arms = module.get_arms()
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"--arms={path}: {type(error).__name__}: {error}") from error
    if not isinstance(arms, dict) or not arms:
        raise InputError(f"--arms={path}: get_arms() must return a dict of arms")
    for name, overrides in arms.items():
        if not isinstance(overrides, dict) or not re.fullmatch(r"[\w.+-]+", str(name)):
            raise InputError(
                f"--arms={path}: arm {name!r} needs a name of letters, digits, _ . + and a dict"
            )
    return arms


def make_points(
    recipe: ConfigDict, arms: Arms, budgets: Sequence[float], seeds: Sequence[int]
) -> list[tuple[Point, ConfigDict]]:
    """Every point with its checked config, seed by seed, so that a stopped sweep has whole rows.

    Raises:
      InputError: an arm whose config is wrong; nothing has run by then.
    """
    found = []
    for seed in seeds:
        for budget in budgets:
            for arm, overrides in arms.items():
                point = Point(arm, tuple(overrides.items()), budget, seed)
                found.append((point, _config(recipe, point)))
    return found


def _config(recipe: ConfigDict, point: Point) -> ConfigDict:
    config = ConfigDict(recipe.to_dict())
    for key, value in point.changes.items():
        section, _, name = key.rpartition(".")
        try:
            target = config
            for part in section.split(".") if section else ():
                target = target[part]
            target[name]  # a key that is there; a new one would go unnoticed
            with target.ignore_type():
                target[name] = value
        except (KeyError, TypeError) as error:
            raise InputError(f"arm {point.arm}: unknown config key {key!r}") from error
    try:
        return check_config(config)
    except InputError as error:
        raise InputError(f"arm {point.arm}: {error}") from error


def run_points(
    points: Sequence[tuple[Point, ConfigDict]],
    output: Path,
    argv: Sequence[str],
    say: Callable[[str], None],
) -> Iterator[dict[str, Any]]:
    """Runs what is not done yet and yields one row per point; failures are rows with an `error`.

    Args:
      points: see `make_points`.
      output: folder of the sweep; runs live in its runs/.
      argv: the arguments of main that give the recipe.
      say: prints a line for the user.

    Raises:
      InputError: a finished run in `output` is of another config.
    """
    for number, (point, config) in enumerate(points, start=1):
        folder = output / "runs" / point.name
        if not _finished(folder, config):
            say(f"[{number}/{len(points)}] {point.name}")
            error = _run(point, folder, argv)
            if error:
                say(f"  {error}")
                yield _row(point) | {"error": error}
                continue
        yield _row(point) | read_point(folder)


def _finished(folder: Path, config: ConfigDict) -> bool:
    if not (folder / "report.json").exists():
        return False
    changed = differences(load_config(folder / "config.json"), config)
    if changed:
        raise InputError(
            f"{folder} holds a run of another config ({'; '.join(changed[:3])}); choose another "
            "--output or remove it"
        )
    return True


def command(point: Point, folder: Path, argv: Sequence[str]) -> list[str]:
    """The command of a point."""
    changes = [f"--config.{key}={value}" for key, value in point.changes.items()]
    return [
        *(sys.executable, "-m", "boneage_jax.main", *argv, *changes),
        f"--workdir={folder}",
    ]


def _run(point: Point, folder: Path, argv: Sequence[str]) -> str:
    """Runs a point with its output in log.txt; returns what went wrong, or nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("a") as log:
        done = subprocess.run(
            command(point, folder, argv), stdout=log, stderr=subprocess.STDOUT, check=False
        )
    if not done.returncode:
        return ""
    lines = (folder / "log.txt").read_text(errors="replace").strip().splitlines()
    return (lines[-1] if lines else f"ended with status {done.returncode}")[:300]


def _row(point: Point) -> dict[str, Any]:
    overrides = " ".join(f"{key}={value}" for key, value in point.overrides)
    return {"arm": point.arm, "overrides": overrides, "budget": point.budget, "seed": point.seed}


def read_point(folder: Path) -> dict[str, Any]:
    """The columns of a finished run from its report.json.

    Raises:
      InputError: the report is damaged.
    """
    path = folder / "report.json"
    try:
        report = json.loads(path.read_text())
        age, compute = report["age"], report["compute"]
        row = {key: age[key] for key in RUN_COLUMNS if key in age}
        row |= {key: compute[key] for key in RUN_COLUMNS if key in compute}
        row["steps"] = report["curve"][-1]["step"]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(f"{path} is damaged ({error}); remove the run and start again") from error
    if "sex" in report:
        row["sex_accuracy"] = report["sex"]["accuracy"]
    return row


def summarize(rows: Sequence[Mapping[str, Any]], output: Path) -> list[dict[str, Any]]:
    """One row per arm and budget, in the order of `rows`.

    The mean over seeds with its 95 % interval (Student's t; absent for one seed), and the
    difference from the first arm at the same budget, see `boneage_jax.experiments.bootstrap.compare`.
    """
    done = [row for row in rows if not row.get("error")]
    groups: dict[tuple[float, str], list[Mapping[str, Any]]] = {}
    for row in done:
        groups.setdefault((float(row["budget"]), str(row["arm"])), []).append(row)
    first = {budget: arm for budget, arm in reversed(list(groups))}
    predictions = {key: _predictions(group, output) for key, group in groups.items()}
    summary = []
    for (budget, arm), group in groups.items():
        errors = np.array([float(row["mae"]) for row in group])
        found: dict[str, Any] = {"arm": arm, "budget": budget, "runs": len(errors)}
        found |= {"mae": errors.mean()} | _interval(errors)
        for key in ("train_flops", "baseline_mae"):
            found[key] = float(np.mean([float(row[key]) for row in group]))
        if arm != first[budget]:
            a, b = predictions[budget, first[budget]], predictions[budget, arm]
            names = (first[budget], arm)
            compared = compare(a, align(b, a.ids, a.true, names))
            found |= {key: compared[key] for key in SUMMARY_COLUMNS if key in compared}
        summary.append(found)
    return summary


def _interval(errors: np.ndarray) -> dict[str, float]:
    n = len(errors)
    if n < 2:
        return {}
    sd = float(errors.std(ddof=1))
    half = (_T95[n - 2] if n - 1 <= len(_T95) else 1.96) * sd / n**0.5
    return {"sd": sd, "low": errors.mean() - half, "high": errors.mean() + half}


def _predictions(group: Sequence[Mapping[str, Any]], output: Path) -> Predictions:
    points = [Point(str(r["arm"]), (), float(r["budget"]), int(r["seed"])) for r in group]
    return read_predictions([output / "runs" / point.name for point in points])


def write_table(
    path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], digits: int = 6
) -> None:
    """Writes a CSV in one piece; fractions with so many significant digits, counts in full."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: _cell(value, digits) for key, value in row.items()})
    part = path.with_name(path.name + ".part")
    part.write_text(text.getvalue())
    part.replace(path)


def _cell(value: Any, digits: int) -> Any:
    return f"{value:.{digits}g}" if isinstance(value, float | np.floating) else value


def read_table(path: Path) -> list[dict[str, str]]:
    """Reads what `write_table` wrote.

    Raises:
      InputError: no such file.
    """
    try:
        with path.open(newline="") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def best_recipes(summary: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table: the best arm at each budget and what its FLOPs bought.

    Months per PFLOP are the months of error that a run removes, beginning from predicting the mean
    age of the training split, over the PFLOP it trains for. The marginal value is the same from one
    budget to the next: what further FLOPs would buy.
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

"""Grids of runs: every arm at every budget with every seed, each an ordinary run.

Each point is a subprocess, so a failure affects only itself. Finished points are kept: a sweep that
is started again reads them and runs the others.
"""

import dataclasses
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from boneage_jax.config import check_config, load_config
from boneage_jax.errors import InputError
from boneage_jax.experiments.sweep_tables import read_point, read_table, run_folder, write_summary
from boneage_jax.extensions import error_in
from boneage_jax.ranges import RANGES, Range
from boneage_jax.report.run_report import read_report
from boneage_jax.runtime.interruption import cleans_up
from boneage_jax.storage.config_changes import differences
from boneage_jax.storage.layout import CONFIG, REPORT

_SEEDS = Range(1, 1000)
Arms = dict[str, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Point:
    """One run of a sweep; a `budget` of 0 FLOPs keeps the recipe's own length."""

    arm: str
    overrides: tuple[tuple[str, Any], ...]
    budget: float
    seed: int

    @property
    def name(self) -> str:
        """Name of its folder."""
        return run_folder(Path(), self.arm, self.budget, self.seed).name

    @property
    def changes(self) -> dict[str, Any]:
        """All config keys that differ from the recipe."""
        given = dict(self.overrides) | {"seed": self.seed}
        return given | ({"budget_flops": self.budget} if self.budget else {})


def load_arms(path: Path) -> Arms:
    """Reads the arms from `get_arms()` of a Python file: config overrides by arm.

    Raises:
      InputError: no such file or function, or names and overrides of another form.
    """
    spec = importlib.util.spec_from_file_location("arms", path) if path.is_file() else None
    if spec is None or spec.loader is None:
        raise InputError(f"--arms={path}: there is no such Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        arms = module.get_arms()
    except (InputError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise error_in(path, error) from error
    if not isinstance(arms, dict) or not arms:
        raise InputError(f"--arms={path}: get_arms() must return a dict of arms")
    for name, overrides in arms.items():
        named = re.fullmatch(r"[\w.+-]{1,100}", str(name))
        if not named or not isinstance(overrides, dict) or not all(map(_is_text, overrides)):
            raise InputError(
                f"--arms={path}: arm {name!r} needs a name of up to 100 letters, digits, _ . + and "
                "a dict of config keys"
            )
    return arms


def _is_text(key: Any) -> bool:
    return isinstance(key, str)


def make_points(
    recipe: ConfigDict, arms: Arms, budgets: Sequence[float], seeds: Sequence[int]
) -> list[tuple[Point, ConfigDict]]:
    """Returns all points with their checked configs.

    Points are ordered by seed, so that an interrupted sweep has complete rows.

    Raises:
      InputError: the config of an arm is invalid; raised before anything runs.
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
            target[name]  # must exist: a new key would go unnoticed
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
    """Runs the points that are not finished yet.

    Args:
      points: see `make_points`.
      output: folder of the sweep; the runs are in its runs/.
      argv: the arguments of main that specify the recipe.
      say: prints a line for the user.

    Yields:
      One row per point; failures are rows with an `error`.

    Raises:
      InputError: a finished run in `output` has another config.
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
    if not (folder / REPORT).exists():
        return False
    changed = differences(load_config(folder / CONFIG), config)
    if changed:
        raise InputError(
            f"{folder} holds a run of another config ({'; '.join(changed[:3])}); choose another "
            "--output or remove it"
        )
    return True


def command(point: Point, folder: Path, argv: Sequence[str]) -> list[str]:
    """Returns the command line of a point."""
    changes = [f"--config.{key}={value}" for key, value in point.changes.items()]
    return [
        *(sys.executable, "-m", "boneage_jax.main", *argv, *changes),
        f"--workdir={folder}",
    ]


def _run(point: Point, folder: Path, argv: Sequence[str]) -> str:
    """Runs a point with its output in log.txt; returns the error, "" if there was none."""
    folder.mkdir(parents=True, exist_ok=True)
    with cleans_up(), (folder / "log.txt").open("a") as log:
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


def choose_arms(arms: Arms, only: str, file: str | Path) -> Arms:
    """Returns the arms named in a comma-separated list, all if empty.

    Raises:
      InputError: a name is not among the arms of `file`.
    """
    chosen = [name.strip() for name in only.split(",")] if only else list(arms)
    for name in chosen:
        if name not in arms:
            raise InputError(f"--only={name}: {file} has the arms {', '.join(arms)}")
    return {name: arms[name] for name in chosen}


def check_free(argv: Sequence[str], changed: Collection[str]) -> None:
    """Checks that arguments of main leave to the sweep what it sets for each run.

    Args:
      argv: the arguments.
      changed: config keys that they change.

    Raises:
      InputError: they name a seed or a workdir.
    """
    workdir = any(argument.startswith("--workdir") for argument in argv)
    for flag, given in (("--config.seed", "seed" in changed), ("--workdir", workdir)):
        if given:
            raise InputError(f"{flag}: a sweep sets it for each run; see --seeds and --output")


def parse_numbers(text: str, name: str, kind: type, found: Range | None = None) -> list:
    """Parses a comma-separated list of numbers.

    Raises:
      InputError: an entry is not a number of this kind, is out of range, or occurs twice.
    """
    try:
        numbers = [kind(part) for part in text.removesuffix(",").split(",")]
    except ValueError:
        raise InputError(f"--{name}={text} must be numbers with commas between") from None
    for number in numbers:
        if found is not None and number not in found:
            raise InputError(f"--{name}={text}: {number} must be {found}")
    if len(set(numbers)) < len(numbers):
        raise InputError(f"--{name}={text} names a number twice")
    return numbers


def parse_seeds(text: str) -> list[int]:
    """Parses a number of seeds (3: 0, 1, 2) or a list of them (3,4).

    Raises:
      InputError: see `parse_numbers`.
    """
    if "," in text:
        return parse_numbers(text, "seeds", int, RANGES["seed"])
    (count,) = parse_numbers(text, "seeds", int)
    if count < 1:
        raise InputError(f"--seeds={text} runs nothing; give a number of seeds or a list of them")
    if count not in _SEEDS:
        raise InputError(f"--seeds={text}: the number of seeds must be {_SEEDS}")
    return list(range(count))


def run_sweep(
    points: Sequence[tuple[Point, ConfigDict]],
    order: Sequence[str],
    output: Path,
    argv: Sequence[str],
    say: Callable[[str], None],
) -> int:
    """Runs the points that are not finished yet; writes tables and figure after each run.

    Args:
      points: see `make_points`.
      order: names of all arms; the others are compared with the first.
      output: folder of the sweep.
      argv: the arguments of main that specify the recipe.
      say: prints a line for the user.

    Returns:
      The number of runs that failed.

    Raises:
      InputError: see `run_points`; or the folder cannot be created.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output={output} cannot be made: {error.strerror}") from error
    rank = {arm: place for place, arm in enumerate(order)}
    table = _rows_before(output)  # rows of other arms, seeds or budgets are kept
    failed = 0
    for row in run_points(points, output, argv, say):
        table[_key(row)] = row
        ranked = sorted(table.values(), key=lambda row: rank.get(row["arm"], len(rank)))
        write_summary(output, ranked)
        if row.get("error"):
            failed += 1
            continue
        say(f"  {row['arm']} seed {row['seed']}: {row['mae']:.2f} months")
        report = read_report(run_folder(output, *_key(row)))
        machine = {key: report["compute"][key] for key in ("hardware", "versions")}
        (output / "hardware.json").write_text(json.dumps(machine, indent=1) + "\n")
    return failed


def _rows_before(output: Path) -> dict[tuple, Mapping[str, Any]]:
    """Returns the rows of runs.csv whose runs still exist."""
    path = output / "runs.csv"
    found = {_key(row): row for row in read_table(path)} if path.exists() else {}
    return {k: row for k, row in found.items() if (run_folder(output, *k) / REPORT).exists()}


def _key(row: Mapping[str, Any]) -> tuple[str, float, int]:
    try:
        return row["arm"], float(row["budget"]), int(row["seed"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"runs.csv is not of a sweep: {error}; remove it") from error

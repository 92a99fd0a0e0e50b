"""A table of finished runs and all that their training cost, for runs that no sweep has started.

usage: python -m benchmarks.studies.run_log --recipe=cls:subset --output=FILE.csv WORKDIR...

One row per workdir, in the order of their ends, in the form of runs.csv of a sweep. `overrides` are
the keys that differ from the recipe. The last line printed is the sum of all FLOPs: trainings,
masks, and of evaluations those beyond the one in the end, by which a run could have been steered.
"""

import argparse
from pathlib import Path
from typing import Any

from benchmarks.provenance import write_provenance
from boneage_jax.cli import load_recipe
from boneage_jax.config import load_config
from boneage_jax.experiments.sweep_tables import RUN_COLUMNS, read_point, write_table
from boneage_jax.report.run_report import read_report
from boneage_jax.storage.config_changes import RUNTIME_KEYS
from boneage_jax.storage.layout import CONFIG, REPORT


def changes(recipe: Any, config: Any, prefix: str = "") -> dict[str, Any]:
    """Returns the keys of `config` whose values differ from `recipe`, without runtime keys."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if hasattr(value, "items"):
            found |= changes(recipe.get(key, {}), value, f"{name}.")
        elif recipe.get(key) != value and name not in RUNTIME_KEYS:
            found[name] = value
    return found


def row_of(folder: Path, recipe: Any) -> dict[str, Any]:
    """Returns the row of one finished run."""
    config = load_config(folder / CONFIG)
    different = changes(recipe, config)
    identity = {"seed": different.pop("seed", 0), "budget": different.pop("budget_flops", 0.0)}
    point = read_point(folder)
    evaluations = max(len(read_report(folder)["curve"]), 1)
    point["eval_flops"] = point["eval_flops"] * (evaluations - 1) // evaluations
    overrides = " ".join(f"{key}={value}" for key, value in sorted(different.items()))
    return {"arm": folder.name, "overrides": overrides} | identity | point


def main() -> None:
    """Writes the table and prints one line per run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--recipe", default="cls:subset")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("workdirs", nargs="+", type=Path, metavar="WORKDIR")
    args = parser.parse_args()
    recipe = load_recipe(args.recipe)
    finished = sorted(
        (folder for folder in args.workdirs if (folder / REPORT).exists()),
        key=lambda folder: (folder / REPORT).stat().st_mtime,
    )
    rows = [row_of(folder, recipe) for folder in finished]
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_table(args.output, rows, RUN_COLUMNS)
    spent = 0
    for row in rows:
        spent += row["train_flops"] + row["mask_flops"] + row["eval_flops"]
        print(f"{row['arm']:<28}{row['mae']:7.3f} months {row['train_flops'] / 1e12:8.2f} TFLOP")
    print(f"{len(rows)} runs, {spent / 1e12:,.1f} TFLOP in all")
    write_provenance(args.output, vars(args), spent_flops=spent)


if __name__ == "__main__":
    main()

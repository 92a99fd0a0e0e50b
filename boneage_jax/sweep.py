"""Runs a grid of recipes over budgets and seeds.

usage: python -m boneage_jax.sweep --config=FILE.py[:PRESET] --arms=FILE.py --output=FOLDER
                                   [--seeds=3] [--budgets=5e12,10e12] [--only=ARM,ARM]
                                   [--config.KEY=VALUE ...] [--dry_run] [--redraw]

ARMS is a Python file with get_arms(), which returns {"base": {}, "huber": {"loss.age": "huber"}};
the first arm is the one that the others are compared with. --seeds is a number of seeds or a list
such as 3,4 (one alone: 3,). Writes FOLDER/runs.csv, summary.csv, best.md, mae_vs_flops.png and
hardware.json; started again, it goes on with what is not done, and adds other arms, seeds or
budgets to what is there. --redraw makes the tables and the figure anew.
"""

import argparse
import json
import sys
from pathlib import Path

from boneage_jax.errors import InputError, door
from boneage_jax.experiments.sweep_figure import draw_sweep
from boneage_jax.experiments.sweeps import (
    RUN_COLUMNS,
    SUMMARY_COLUMNS,
    best_recipes,
    command,
    load_arms,
    make_points,
    read_table,
    run_points,
    summarize,
    write_table,
)
from boneage_jax.main import parse


def numbers(text: str, name: str, kind: type) -> list:
    """Reads a list with commas.

    Raises:
      InputError: an entry is no such number.
    """
    try:
        return [kind(part) for part in text.removesuffix(",").split(",")]
    except ValueError:
        raise InputError(f"--{name}={text} must be numbers with commas between") from None


def write_summary(output: Path, rows: list) -> None:
    """The tables and the figure of all runs so far."""
    write_table(output / "runs.csv", rows, RUN_COLUMNS, digits=12)
    summary = summarize(rows, output)
    write_table(output / "summary.csv", summary, SUMMARY_COLUMNS)
    if summary:
        (output / "best.md").write_text(best_recipes(summary))
        draw_sweep(output / "mae_vs_flops.png", summary)


def main() -> int:
    """The door."""
    parser = argparse.ArgumentParser("python -m boneage_jax.sweep", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--output", required=True, type=Path, help="folder of the sweep")
    parser.add_argument("--arms", type=Path, help="Python file with get_arms()")
    parser.add_argument("--seeds", default="3", help="how many, or which")
    parser.add_argument("--budgets", default="0", help="FLOPs; 0 is the recipe's own length")
    parser.add_argument("--only", default="", help="these arms alone")
    parser.add_argument("--dry_run", action="store_true", help="print the commands and end")
    parser.add_argument("--redraw", action="store_true", help="tables and figure of what is there")
    args, rest = parser.parse_known_args()
    if args.redraw:
        write_summary(args.output, read_table(args.output / "runs.csv"))
        return 0
    if not args.arms:
        raise InputError("--arms=FILE.py is needed; see --help")
    recipe, _ = parse(rest)
    arms = load_arms(args.arms)
    chosen = args.only.split(",") if args.only else list(arms)
    for name in chosen:
        if name not in arms:
            raise InputError(f"--only={name}: {args.arms} has the arms {', '.join(arms)}")
    order = list(arms)
    arms = {name: arms[name] for name in chosen}
    seeds = numbers(args.seeds, "seeds", int)
    seeds = list(range(seeds[0])) if "," not in args.seeds else seeds
    points = make_points(recipe, arms, numbers(args.budgets, "budgets", float), seeds)
    if args.dry_run:
        for point, _ in points:
            print(*command(point, args.output / "runs" / point.name, rest)[1:])
        return 0
    try:
        args.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output={args.output} cannot be made: {error.strerror}") from error
    rows: list = []
    table = _already(args.output)  # of other arms, seeds or budgets: they stay
    for row in run_points(points, args.output, rest, lambda line: print(line, flush=True)):
        rows.append(row)
        table[_key(row)] = row
        # In the order of the file of arms, whose first is the one to compare with.
        rank = {arm: place for place, arm in enumerate(order)}
        ranked = sorted(table.values(), key=lambda row: rank.get(row["arm"], len(rank)))
        write_summary(args.output, ranked)
        if not row.get("error"):
            print(f"  {row['arm']} seed {row['seed']}: {row['mae']:.2f} months", flush=True)
            report = args.output / "runs" / f"{row['arm']}-{row['budget']:g}-{row['seed']}"
            compute = json.loads((report / "report.json").read_text())["compute"]
            facts = {key: compute[key] for key in ("hardware", "versions")}
            (args.output / "hardware.json").write_text(json.dumps(facts, indent=1) + "\n")
    print((args.output / "best.md").read_text() if (args.output / "best.md").exists() else "")
    failed = sum(bool(row.get("error")) for row in rows)
    if failed:
        print(f"{failed} of {len(rows)} runs failed; see {args.output / 'runs.csv'}")
    return int(failed > 0)


def _already(output: Path) -> dict[tuple, dict]:
    """The rows of runs.csv whose runs are still there."""
    path = output / "runs.csv"
    found = {_key(row): row for row in read_table(path)} if path.exists() else {}
    folders = {key: output / "runs" / f"{key[0]}-{key[1]:g}-{key[2]}" for key in found}
    return {key: row for key, row in found.items() if (folders[key] / "report.json").exists()}


def _key(row: dict) -> tuple:
    try:
        return row["arm"], float(row["budget"]), int(row["seed"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"runs.csv is not of a sweep: {error}; remove it") from error


def run() -> None:
    """Console script."""
    sys.exit(door(main))


if __name__ == "__main__":
    run()

"""Runs a grid of recipes over budgets and seeds.

usage: python -m boneage_jax.sweep --config=RECIPE[:PRESET] --arms=ARMS --output=FOLDER
                                   [--seeds=3] [--budgets=5e12,10e12] [--only=ARM,ARM]
                                   [--config.KEY=VALUE ...] [--dry_run] [--redraw]

ARMS is a Python file with get_arms(), or the name of a shipped one (levers, transfer, budgets). It
returns {"base": {}, "huber": {"loss.age": "huber"}}; the others are compared with the first arm.
--seeds is a number of seeds or a list such as 3,4 (a single seed: 3,). Writes FOLDER/runs.csv,
summary.csv, best.md, mae_vs_flops.png and hardware.json. Started again, it continues with the runs
that are missing; arms, seeds or budgets may be added. --redraw only makes tables and figure.
"""

from collections.abc import Sequence

from boneage_jax.cli import Parser, find_arms, parse_config, path_argument, run_door
from boneage_jax.errors import InputError
from boneage_jax.ranges import RANGES


def main(argv: Sequence[str]) -> int:
    """Runs the sweep given by `argv`; returns the exit status."""
    parser = Parser(__doc__, extensions=True)
    parser.add_argument("--output", required=True, type=path_argument, help="folder of the sweep")
    parser.add_argument("--arms", help="Python file with get_arms(), or levers, transfer, budgets")
    parser.add_argument("--seeds", default="3", help="how many, or which")
    parser.add_argument("--budgets", default="0", help="FLOPs; 0 is the recipe's own length")
    parser.add_argument("--only", default="", help="these arms alone")
    parser.add_argument("--dry_run", action="store_true", help="print the commands and exit")
    parser.add_argument("--redraw", action="store_true", help="tables and figure of past runs")
    args, rest = parser.parse_known_args(argv)

    from boneage_jax.experiments.sweep_tables import read_table, write_summary
    from boneage_jax.experiments.sweeps import (
        check_free,
        choose_arms,
        command,
        load_arms,
        make_points,
        parse_numbers,
        parse_seeds,
        run_sweep,
    )

    if args.redraw:
        write_summary(args.output, read_table(args.output / "runs.csv"))
        return 0
    if not args.arms:
        raise InputError("--arms=FILE.py is needed; see --help")
    recipe, _, changed = parse_config(rest)
    check_free(rest, changed)
    rest += [f"--extensions={file}" for file in args.extensions or ()]
    arms = load_arms(find_arms(args.arms))
    points = make_points(
        recipe,
        choose_arms(arms, args.only, args.arms),
        parse_numbers(args.budgets, "budgets", float, RANGES["budget_flops"]),
        parse_seeds(args.seeds),
    )
    if args.dry_run:
        for point, _ in points:
            print("python", *command(point, args.output / "runs" / point.name, rest)[1:])
        return 0
    failed = run_sweep(points, list(arms), args.output, rest, lambda line: print(line, flush=True))
    print((args.output / "best.md").read_text() if (args.output / "best.md").exists() else "")
    if failed:
        print(f"{failed} of {len(points)} runs failed; see {args.output / 'runs.csv'}")
    return int(failed > 0)


def run() -> None:
    """Runs the command; entry point of the console script boneage-sweep."""
    run_door(main, computes=False)


if __name__ == "__main__":
    run()

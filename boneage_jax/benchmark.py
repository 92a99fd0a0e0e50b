"""Measures speed: steps, input, compilation and memory, against the machine's own peaks.

usage: python -m boneage_jax.benchmark --config=bench[:PRESET] [--output=FOLDER]
                                       [--only=CASE,CASE] [--compare=OLD.json]
                                       [--report=REPORT.json] [--config.KEY=VALUE ...]

Writes FOLDER/benchmark.json, benchmark.csv and roofline.png (default: runs/bench or
runs/bench-PRESET). --compare ends with status 1 where anything became slower by more than noise.
--report is the report.json of a training, whose error is shown beside what it cost.
Presets: b4, unet, gpu. Cases and rules: docs/benchmark.md.
"""

import sys
from collections.abc import Sequence

from boneage_jax.cli import Parser, parse_config, path_argument, prepare_jax, run_door


def main(argv: Sequence[str]) -> int:
    """Runs the benchmark described by `argv` and prints a table; returns the exit status."""
    parser = Parser(__doc__, extensions=True)
    parser.add_argument("--output", type=path_argument, metavar="FOLDER", help="for the results")
    parser.add_argument("--compare", type=path_argument, metavar="OLD.json", help="earlier results")
    parser.add_argument("--report", type=path_argument, metavar="REPORT.json", help="of a training")
    parser.add_argument("--only", default="", metavar="CASE,CASE", help="these cases only")
    args, rest = parser.parse_known_args(argv)
    config, default, _ = parse_config(rest)

    from boneage_jax.benchmarking.suite import benchmark

    prepare_jax(compile_cache=False, trains=True)
    lines, slower = benchmark(
        config,
        args.output or default,
        only=args.only,
        compare_with=args.compare,
        report=args.report,
        say=lambda line: print(line, file=sys.stderr),
    )
    print(*lines, sep="\n")
    return int(slower)


def run() -> None:
    """Runs the command; entry point of the console script boneage-benchmark."""
    run_door(main)


if __name__ == "__main__":
    run()

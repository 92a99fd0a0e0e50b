"""Measures speed: steps, input, compilation and memory, against the machine's own peaks.

usage: python -m boneage_jax.benchmark --config=configs/bench.py[:PRESET] [--output=FOLDER]
                                       [--only=CASE,CASE] [--compare=OLD.json]
                                       [--report=REPORT.json] [--config.KEY=VALUE ...]

Writes FOLDER/benchmark.json, benchmark.csv and roofline.png (default: runs/bench or
runs/bench-PRESET). --compare ends with status 1 where anything became slower by more than noise.
--report is the report.json of a training, whose error is shown beside what it cost.
Presets: b4, unet, gpu. Cases and rules: docs/benchmark.md.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from boneage_jax.errors import InputError, door
from boneage_jax.runtime.cpu_memory import use_huge_pages
from boneage_jax.runtime.xla_flags import choose_for_cpu


def main() -> int:
    """The door."""
    parser = argparse.ArgumentParser("python -m boneage_jax.benchmark", add_help=False)
    for name in ("output", "compare", "report"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--only", default="")
    if {"-h", "--help"} & set(sys.argv[1:]):
        print((__doc__ or "").strip())
        return 0
    parser.exit_on_error = False
    try:
        args, rest = parser.parse_known_args()
    except argparse.ArgumentError as error:
        raise InputError(f"command line: {error}") from error

    from boneage_jax.benchmarking.comparing import comparison_lines, load_benchmark
    from boneage_jax.benchmarking.settings import check_bench
    from boneage_jax.benchmarking.suite import Bed, choose_cases, run_suite
    from boneage_jax.benchmarking.table import (
        load_report,
        make_folder,
        report_lines,
        table_lines,
        write_benchmark,
    )
    from boneage_jax.main import parse
    from boneage_jax.runtime.compiler import hide_latency, tidy_heap

    config, default = parse(rest)
    recipe, settings, facts = check_bench(config)
    cases = choose_cases(args.only)
    old = load_benchmark(args.compare) if args.compare else None
    report = load_report(args.report) if args.report else None
    output = make_folder(args.output or default)
    with tempfile.TemporaryDirectory() as scratch:
        bed = Bed(recipe, settings, facts, Path(scratch), lambda x: print(x, file=sys.stderr))
        hide_latency()
        tidy_heap()
        benchmark = run_suite(bed, cases, old)
    paths = write_benchmark(output, benchmark, report)
    print(*table_lines(benchmark), *(report_lines(report, benchmark) if report else ()), sep="\n")
    print(*(f"written: {path}" for path in paths), sep="\n")
    if old is None:
        return 0
    lines, slower = comparison_lines(old, benchmark, settings.tolerance)
    print(*lines, sep="\n")
    return int(slower)


def run() -> None:
    """Console script."""
    choose_for_cpu()
    use_huge_pages()
    sys.exit(door(main))


if __name__ == "__main__":
    run()

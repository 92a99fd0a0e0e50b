"""Evaluates a trained network on a split of its data set.

usage: python -m boneage_jax.evaluate --workdir=DIR|NAME [--split=validation] [--unlock_test]
                                      [--raw_dir=DIR] [--data_dir=DIR] [--output=FOLDER]
                                      [--stress[=IMAGES]] [--extensions=FILE.py]

Prints the result and writes WORKDIR/evaluation/SPLIT/{report.json,report.html,predictions.csv,
figures/}. The splits test and locked need --unlock_test, which is recorded. A published network,
which stays as it is, needs --output and the data: --raw_dir or --data_dir. --stress also reads 200
images of the split turned, inverted, blurred, framed and so on: a section of the report.
"""

from collections.abc import Sequence

from boneage_jax.cli import Parser, prepare_jax, run_door


def main(argv: Sequence[str]) -> int:
    """Evaluates the run given by `argv` and prints the result; returns the exit status."""
    parser = Parser(__doc__, extensions=True)
    parser.add_argument("--workdir", required=True, help="a training or a network")
    parser.add_argument("--split", default="validation", help="validation | test | locked | train")
    parser.add_argument("--unlock_test", action="store_true", help="open the split test or locked")
    parser.add_argument("--raw_dir", default="", help="raw data, if it moved")
    parser.add_argument("--data_dir", default="", help="prepared data, if it moved")
    parser.add_argument("--output", default="", help="folder to write to instead")
    parser.add_argument("--stress", nargs="?", type=int, const=200, default=None, metavar="IMAGES")
    args = parser.parse_args(argv)
    if args.stress is not None and args.stress < 1:
        parser.error(f"--stress={args.stress} must be at least 1 image")

    from boneage_jax.evaluation.evaluate_run import evaluate
    from boneage_jax.report.page import summary_lines
    from boneage_jax.storage.bucket import address_of

    prepare_jax()
    report = evaluate(
        args.workdir,
        args.split,
        unlock_test=args.unlock_test,
        raw_dir=args.raw_dir,
        data_dir=args.data_dir,
        output=args.output,
        stress=args.stress or 0,
    )
    folder = args.output or f"{address_of(args.workdir)}/evaluation/{args.split}"
    print(*summary_lines(report), f"report: {folder}/report.html", sep="\n")
    return 0


def run() -> None:
    """Runs the command; entry point of the console script boneage-evaluate."""
    run_door(main)


if __name__ == "__main__":
    run()

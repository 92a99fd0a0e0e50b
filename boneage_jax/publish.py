"""Writes a trained network as a folder for others: small, checked by sums, nothing executed.

usage: python -m boneage_jax.publish --workdir=DIR --output=FOLDER [--name=NAME] [--license=FILE]
                                     [--data=TEXT] [--evaluation=REPORT.json]
                                     [--raw_dir=DIR] [--data_dir=DIR] [--extensions=FILE.py]

Writes FOLDER/{network.safetensors, config.json, facts.json, calibration.npz, report.json,
README.md, LICENSE, SHA256SUMS}: weights in float16, settings and calibration, a model card and the
terms. --data says on the card what a data set of your own is; --evaluation, once or more, adds what
`python -m boneage_jax.evaluate` found of the network on another split or under stress. The other
commands take FOLDER as --workdir, also from hf:OWNER/REPO if it is uploaded there.
Prints how predictions change by rounding: on the validation images of the run where its data are
at hand, else on phantoms.
"""

from collections.abc import Sequence

from boneage_jax.cli import Parser, path_argument, prepare_jax, run_door


def main(argv: Sequence[str]) -> int:
    """Publishes the run given by `argv` and prints what changed; returns the exit status."""
    parser = Parser(__doc__, extensions=True)
    parser.add_argument("--workdir", required=True, help="folder of a finished training")
    parser.add_argument("--output", required=True, type=path_argument, help="new folder to write")
    parser.add_argument("--name", default="", help="of the network (default: that of the folder)")
    parser.add_argument(
        "--license", type=path_argument, metavar="FILE", help="terms of the weights"
    )
    parser.add_argument("--data", default="", metavar="TEXT", help="what the data are, on the card")
    parser.add_argument(
        "--evaluation",
        action="append",
        default=[],
        type=path_argument,
        metavar="REPORT.json",
        help="report of an evaluation, for the card",
    )
    parser.add_argument("--raw_dir", default="", help="raw data of the run, if they moved")
    parser.add_argument("--data_dir", default="", help="prepared data of the run, if they moved")
    args = parser.parse_args(argv)

    from boneage_jax.evaluation.publish_run import publish

    prepare_jax()
    lines = publish(
        args.workdir,
        args.output,
        name=args.name,
        license_file=args.license,
        data=args.data,
        evaluations=args.evaluation,
        raw_dir=args.raw_dir,
        data_dir=args.data_dir,
    )
    print(*lines, sep="\n")
    return 0


def run() -> None:
    """Runs the command; entry point of the console script boneage-publish."""
    run_door(main)


if __name__ == "__main__":
    run()

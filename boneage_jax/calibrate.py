"""Fits a network to radiographs of another site without training: bias, intervals, rejection.

usage: python -m boneage_jax.calibrate [--workdir=DIR|NAME] --csv=FILE --output=FOLDER
                                       [--method=none|shift|line|ridge] [--masks=DIR]
                                       [--file_column=NAME] [--age_column=NAME]
                                       [--age_unit=months|years|weeks|days] [--sex_column=NAME]
                                       [--sex_values=male=CODE,female=CODE]
                                       [--extensions=FILE.py] PATH...

PATH: radiographs, as files, folders or globs. FILE: a CSV or XLSX table of their bone ages, and
sexes if known. At least 30 are needed, 100 are better. Prints errors and coverage before and after,
the latter cross-fitted: no image is corrected by a fit that has seen it. FOLDER is a network that
the other commands take as --workdir; it holds no radiograph.
"""

from collections.abc import Sequence

from boneage_jax.cli import Parser, path_argument, prepare_jax, run_door

_COLUMNS = {
    "file_column": "column with the file name or id of the radiograph",
    "age_column": "column with the bone age",
    "age_unit": "months, years, weeks or days (default: from the column's name, else months)",
    "sex_column": "column with the sex",
    "sex_values": "codes of the sex, if unusual",
}


def main(argv: Sequence[str]) -> int:
    """Calibrates the network given by `argv` and prints the errors; returns the exit status."""
    parser = Parser(__doc__, extensions=True)
    text = "a training, or a network: its folder, hf:OWNER/REPO or a name of predict --list"
    parser.add_argument("--workdir", help=text)
    parser.add_argument("--csv", required=True, type=path_argument, help="table of the bone ages")
    parser.add_argument("--output", required=True, type=path_argument, help="new folder to write")
    text = "correction; ridge, the default: a line as far as the errors show it clearly"
    parser.add_argument("--method", default="ridge", help=text)
    parser.add_argument(
        "--masks", default="", help="hand masks or a U-Net, where training had them"
    )
    for name, meaning in _COLUMNS.items():
        parser.add_argument(f"--{name}", default="", help=meaning)
    parser.add_argument("paths", nargs="+", metavar="PATH", help="radiographs")
    args = parser.parse_args(argv)

    from boneage_jax.evaluation.calibrate_run import calibrate
    from tfds_rsna.radiograph_folder.columns import Columns

    prepare_jax()
    lines = calibrate(
        args.workdir,
        args.paths,
        args.csv,
        args.output,
        columns=Columns(
            file=args.file_column,
            age=args.age_column,
            sex=args.sex_column,
            age_unit=args.age_unit,
            sex_values=args.sex_values,
        ),
        method=args.method,
        masks=args.masks,
    )
    print(*lines, f"{args.output}: use it as --workdir", sep="\n")
    return 0


def run() -> None:
    """Runs the command; entry point of the console script boneage-calibrate."""
    run_door(main)


if __name__ == "__main__":
    run()

"""Reads bone age from radiographs (PNG, JPEG, DICOM).

usage: python -m boneage_jax.predict --workdir=DIR --output=FILE.csv [--sex_csv=FILE] [--masks=DIR]
                                     [--reference=FILE.csv] [--features=FILE.npz]
                                     [--dicom_out=FOLDER] [--report=FOLDER]
                                     [--references=FOLDER]
                                     [--extensions=FILE.py] PATH...

PATH: image files, folders or globs. One row per file: file, bone_age_months, low_months,
high_months (95 % interval), p_male, accepted, error, note. An unreadable file gets its row with
the error and the others go on; the exit status is 1 if no file could be read. Where DICOM files
are among them, columns on the patient follow (docs/clinical.md).
"""

from collections.abc import Sequence
from pathlib import Path

from boneage_jax.cli import Parser, prepare_jax, run_door


def main(argv: Sequence[str]) -> int:
    """Predicts the files given by `argv` and prints a summary; returns the exit status."""
    parser = Parser(__doc__, extensions=True)
    parser.add_argument("--workdir", required=True, help="folder of a finished training")
    parser.add_argument("--output", required=True, type=Path, help="CSV file to write")
    parser.add_argument("--sex_csv", type=Path, help="table of id,male; id is the file's stem")
    parser.add_argument(
        "--masks", default="", help="hand masks or a U-Net's workdir, where training had masks"
    )
    parser.add_argument(
        "--reference", type=Path, help="table of sex,age_months,mean,sd, for sd_score"
    )
    parser.add_argument("--features", type=Path, help="file .npz for the features of the network")
    parser.add_argument("--dicom_out", type=Path, help="folder for reports and masks in DICOM")
    parser.add_argument("--report", type=Path, help="folder for an HTML page per radiograph")
    parser.add_argument(
        "--references", type=Path, help="folder; a page shows the nearest five of its radiographs"
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="image files, folders, globs")
    args = parser.parse_args(argv)

    from boneage_jax.inference.open_outputs import Wanted
    from boneage_jax.inference.predict_files import check_arguments, describe, write_predictions

    files, sexes, found = check_arguments(args.paths, args.output, args.sex_csv)
    wanted = Wanted.from_arguments(args)

    prepare_jax()
    predictor, outputs = wanted.load(args.workdir, args.masks, files)
    written = write_predictions(predictor, files, sexes, args.output, outputs)
    first, *rest = describe(predictor, written, {} if args.reference else sexes)
    print(f"{args.output}: {first}", *found, *rest, sep="\n")
    return int(not written.read)


def run() -> None:
    """Runs the command; entry point of the console script boneage-predict."""
    run_door(main)


if __name__ == "__main__":
    run()

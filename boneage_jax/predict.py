"""Reads bone age from radiographs (PNG, JPEG, DICOM).

usage: python -m boneage_jax.predict [--workdir=DIR|NAME] [--output=FILE.csv|-] [--json] [--list]
                                     [--sex_csv=FILE] [--masks=DIR] [--reference=FILE.csv]
                                     [--features=FILE.npz] [--dicom_out=FOLDER] [--report=FOLDER]
                                     [--references=FOLDER] [--extensions=FILE.py] PATH...

PATH: image files, folders or globs. Prints the age, its 95 % interval, the probability of a male
hand, and whether the image is like the radiographs of training. --json prints one JSON object per
file; --output writes a CSV (- prints it) of one row per file: file, bone_age_months, low_months,
high_months, p_male, accepted, error, note; for DICOM files columns on the patient follow
(docs/clinical.md). An unreadable file gets its row with the error and the others go on; the exit
status is 1 if no file could be read. For research, not for patient care.
"""

import sys
from collections.abc import Sequence

from boneage_jax.cli import Parser, path_argument, prepare_jax, run_door


def main(argv: Sequence[str]) -> int:
    """Predicts the files given by `argv` and prints a summary; returns the exit status."""
    parser = Parser(__doc__, extensions=True)
    text = "a training, or a network: its folder, hf:OWNER/REPO or a name of --list"
    text += " (default: the best of at most 10 MB)"
    parser.add_argument("--workdir", help=text)
    for name, text in (
        ("--output", "CSV file to write, or - for standard output"),
        ("--sex_csv", "table of id,male; id is the file's stem"),
        ("--reference", "table of sex,age_months,mean,sd for scores"),
        ("--features", "file .npz for the features of the network"),
        ("--dicom_out", "folder for reports and masks in DICOM"),
        ("--report", "folder for an HTML page per radiograph"),
        ("--references", "folder of radiographs to show beside"),
    ):
        parser.add_argument(name, type=path_argument, help=text)
    parser.add_argument("--json", action="store_true", help="print one JSON object per file")
    parser.add_argument("--list", action="store_true", help="print the known networks and exit")
    parser.add_argument("--masks", default="", help="hand masks or a U-Net, as in training")
    parser.add_argument("paths", nargs="*", metavar="PATH", help="image files, folders, globs")
    args = parser.parse_args(argv)
    if args.list:
        from boneage_jax.storage.shipped import network_table, shipped_networks

        print(*network_table(shipped_networks()), sep="\n")
        return 0
    if args.json and args.output:
        parser.error("--json and --output exclude each other")
    if not args.paths:
        parser.error("the following arguments are required: PATH")

    from boneage_jax.inference import predict_files as on_files
    from boneage_jax.inference.open_outputs import Wanted

    files, sexes, found = on_files.check_arguments(args.paths, args.output, args.sex_csv)
    wanted = Wanted.from_arguments(args)
    prepare_jax()
    predictor, outputs = wanted.load(args.workdir, args.masks, files)
    if args.output:
        written = on_files.write_predictions(predictor, files, sexes, args.output, outputs)
    else:
        write = on_files.print_predictions
        written = write(predictor, files, sexes, outputs, as_json=args.json)
    first, *rest = on_files.describe(predictor, written, {} if args.reference else sexes)
    if args.output and args.output != on_files.STDOUT:
        print(f"{args.output}: {first}", *found, *rest, sep="\n")
    elif len(files) > 1 or found:
        print(first, *found, *rest, sep="\n", file=sys.stderr)
    return int(not written.read)


def run() -> None:
    """Runs the command; entry point of the console scripts boneage and boneage-predict."""
    run_door(main)


if __name__ == "__main__":
    run()

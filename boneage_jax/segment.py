"""Finds the hand in radiographs: one PNG mask per file, at the file's size.

usage: python -m boneage_jax.segment [--workdir=DIR|NAME] --output=FOLDER
                                     [--keep_parts] [--keep_holes] [--extensions=FILE.py] PATH...

Writes FOLDER/STEM.png (255 hand, 0 background), and for review by a person
FOLDER/review/masks.csv   per file: area, parts, sides touched, confidence, whether to look, why
FOLDER/review/contact_sheet.png   the masks over their radiographs, doubtful ones first
FOLDER/review/summary.json   counts, images/s, FLOPs
"""

from collections.abc import Sequence

from boneage_jax.cli import Parser, path_argument, prepare_jax, run_door


def main(argv: Sequence[str]) -> int:
    """Segments the files given by `argv` and prints a summary; returns the exit status."""
    parser = Parser(__doc__, extensions=True)
    text = "a U-Net: its training or folder, hf:OWNER/REPO, or a name of predict --list (the best)"
    parser.add_argument("--workdir", help=text)
    parser.add_argument("--output", required=True, type=path_argument, help="folder for the masks")
    parser.add_argument("--keep_parts", action="store_true", help="not only the largest part")
    parser.add_argument("--keep_holes", action="store_true", help="do not fill holes")
    parser.add_argument("paths", nargs="+", metavar="PATH", help="image files, folders, globs")
    args = parser.parse_args(argv)

    from boneage_jax.inference.segment_files import describe, segment

    prepare_jax()
    done = segment(
        args.workdir,
        args.paths,
        args.output,
        largest=not args.keep_parts,
        fill=not args.keep_holes,
    )
    print(
        f"{args.output}: {done['images']} masks at {done['images_per_second']:.1f} images/s, "
        f"{done['to_look_at']} to look at, {done['unreadable']} files unreadable; "
        f"see {args.output / 'review'}"
    )
    for line in describe(done):
        print(line)
    return int(done["images"] == 0)


def run() -> None:
    """Runs the command; entry point of the console script boneage-segment."""
    run_door(main)


if __name__ == "__main__":
    run()

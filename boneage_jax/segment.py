"""Finds the hand in radiographs: one PNG mask per file, at the file's size.

usage: python -m boneage_jax.segment --workdir=DIR --output=FOLDER [--keep_parts] [--keep_holes]
                                     PATH...

Writes FOLDER/STEM.png (255 hand, 0 background), and for a person to look at
FOLDER/review/masks.csv   per file: area, parts, sides touched, confidence, whether to look, why
FOLDER/review/contact_sheet.png   the masks over their radiographs, doubtful ones first
FOLDER/review/summary.json   counts, images/s, FLOPs
"""

import argparse
import sys
from pathlib import Path

from boneage_jax.errors import door
from boneage_jax.runtime.cpu_memory import use_huge_pages
from boneage_jax.runtime.xla_flags import choose_for_cpu


def main() -> int:
    """The door."""
    parser = argparse.ArgumentParser("python -m boneage_jax.segment", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--workdir", required=True, help="folder of a finished U-Net training")
    parser.add_argument("--output", required=True, type=Path, help="folder for the masks")
    parser.add_argument("--keep_parts", action="store_true", help="not only the largest part")
    parser.add_argument("--keep_holes", action="store_true", help="do not fill holes")
    parser.add_argument("paths", nargs="+", metavar="PATH", help="image files, folders, globs")
    args = parser.parse_args()

    from boneage_jax.inference.segment_files import segment

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
    return int(done["images"] == 0)


def run() -> None:
    """Console script."""
    choose_for_cpu()
    use_huge_pages()
    sys.exit(door(main))


if __name__ == "__main__":
    run()

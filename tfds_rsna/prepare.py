"""Prepares a data set: decodes and resizes its radiographs once, into array_record files.

usage: python -m tfds_rsna.prepare NAME[/CONFIG] --raw_dir=DIR [--data_dir=DIR] [options]

NAME: rsna_bone_age, radiograph_folder, hand_mask, hand_phantom; CONFIG: the image size, e.g. 512.
The prepared data goes to --data_dir, else TFDS_DATA_DIR, else ~/tensorflow_datasets, with a
subfolder for each raw folder. A second call does nothing unless the content of the raw folder or
the options have changed. TensorFlow is not needed.
"""

import signal
import sys
from collections.abc import Sequence

from boneage_jax.cli import Parser, run_door
from boneage_jax.data.masks import MODES
from tfds_rsna.builders import prepare
from tfds_rsna.find_builder import NAMES, find_builder


def main(argv: Sequence[str]) -> int:
    """Prepares the data set given by `argv` and prints the split sizes; returns the exit status."""
    parser = Parser(__doc__, extensions=True)
    parser.add_argument("name", metavar="NAME[/CONFIG]", help=f"{', '.join(NAMES)}")
    parser.add_argument("--raw_dir", default="", help="folder of the raw data")
    parser.add_argument("--data_dir", default="", help="folder for the prepared data")
    parser.add_argument(
        "--skip_unreadable", action="store_true", help="leave out unreadable images and list them"
    )
    parser.add_argument(
        "--mask_mode", default="", choices=("", *MODES), help="how, with --masks (crop)"
    )
    parser.add_argument("--overwrite", action="store_true", help="prepare again in any case")
    for option, texts in _options().items():
        parser.add_argument(f"--{option}", default="", help="; ".join(texts).replace("%", "%%"))
    args = vars(parser.parse_args(argv))
    args.pop("extensions", None)
    # SIGTERM of a batch system unwinds like Ctrl-C, so that nothing is left half-done.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    builder = prepare(args.pop("name"), download=True, **args)
    for name, split in builder.info.splits.items():
        print(f"{builder.info.full_name} {name}: {split.num_examples} images")
    return 0


def _options() -> dict[str, list[str]]:
    """Returns the options of the builders with their explanations, by name."""
    options: dict[str, list[str]] = {}
    for name in NAMES:
        for option, text in getattr(find_builder(name)[0], "OPTIONS", {}).items():
            options.setdefault(option, []).append(f"{name}: {text}")
    options.setdefault("masks", []).append(
        "others: folder of hand masks, or a U-Net's workdir: store radiographs without background"
    )
    return options


def run() -> None:
    """Runs the command; entry point of the console script boneage-prepare."""
    run_door(main, computes=False)


if __name__ == "__main__":
    run()

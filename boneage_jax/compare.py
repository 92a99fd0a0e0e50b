"""Compares two recipes on the same images: paired bootstrap of their errors.

usage: python -m boneage_jax.compare RUN_A RUN_B [--split=validation] [--json=FILE]

RUN is the workdir of a training, a predictions.csv, or several of these with commas between: the
runs of one recipe from different seeds. Prints both errors and the difference B - A with its 95 %
interval.
"""

import json
from collections.abc import Sequence

from boneage_jax.cli import Parser, path_argument, run_door
from boneage_jax.errors import InputError
from boneage_jax.storage.layout import checked_path


def main(argv: Sequence[str]) -> int:
    """Compares the runs given by `argv` and prints the result; returns the exit status."""
    parser = Parser(__doc__)
    parser.add_argument("run_a", metavar="RUN_A", help="workdir(s) or predictions.csv")
    parser.add_argument("run_b", metavar="RUN_B", help="likewise")
    parser.add_argument("--split", default="validation", help="whose predictions to read")
    parser.add_argument("--json", type=path_argument, help="file to write the numbers to")
    args = parser.parse_args(argv)

    from boneage_jax.experiments.bootstrap import (
        align,
        compare,
        predictions_file,
        read_predictions,
    )
    from boneage_jax.storage.safe_write import check_replaces_nothing

    names = args.run_a, args.run_b
    paths = [
        [predictions_file(checked_path(path, "RUN"), args.split) for path in name.split(",")]
        for name in names
    ]
    if args.json:
        check_replaces_nothing(args.json, "--json", [*paths[0], *paths[1]])
    a, b = (read_predictions(files) for files in paths)
    found = compare(a, align(b, a.ids, a.true, names))
    for letter, name in zip("ab", names, strict=True):
        runs = found[f"runs_{letter}"]
        print(f"{letter.upper()}: {found[f'mae_{letter}']:.2f} months  {name} ({runs:.0f} run(s))")
    print(
        f"B - A: {found['difference']:+.2f} months, 95 % interval "
        f"{found['difference_low']:+.2f} to {found['difference_high']:+.2f}, "
        f"p = {found['p']:.2g}, {found['images']:.0f} images"
    )
    if args.json:
        try:
            args.json.write_text(json.dumps(found, indent=1) + "\n")
        except OSError as error:
            raise InputError(f"--json={args.json} cannot be written: {error.strerror}") from error
    return 0


def run() -> None:
    """Runs the command; entry point of the console script boneage-compare."""
    run_door(main, computes=False)


if __name__ == "__main__":
    run()

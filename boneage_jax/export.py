"""Writes a trained network as a file for other software.

usage: python -m boneage_jax.export [--workdir=DIR|NAME] --format=FORMAT --output=FILE
                                    [--precision=float32|float16|int8] [--prepared]
                                    [--extensions=FILE.py] [PATH...]

  --format=onnx        for onnxruntime and others, in any language
  --format=stablehlo   for JAX without this package, on CPU, CUDA and TPU
  --format=web         one HTML page for a browser, offline: drop a radiograph, see its age

ONNX and StableHLO files put radiographs right that are turned, inverted or small, as predict does;
with --prepared they do not, and are given radiographs as `Predictor.fit` returns them.

PATH: radiographs on which the file is compared with the network, and int8 is fitted; without them
those of the training's validation split, where its data is prepared.
"""

from collections.abc import Sequence

from boneage_jax.cli import Parser, path_argument, prepare_jax, run_door
from boneage_jax.errors import InputError


def main(argv: Sequence[str]) -> int:
    """Exports the network given by `argv` and prints a summary; returns the exit status."""
    parser = Parser(__doc__, extensions=True)
    parser.add_argument(
        "--workdir", help="a training or a network; the best of at most 10 MB if left out"
    )
    parser.add_argument("--format", required=True, help="see above")
    parser.add_argument("--output", required=True, type=path_argument, help="file to write")
    parser.add_argument("--precision", default="float32", help="of the weights of ONNX files")
    parser.add_argument("--prepared", action="store_true", help="leave out what puts right")
    parser.add_argument("paths", nargs="*", metavar="PATH", help="image files, folders, globs")
    args = parser.parse_args(argv)

    from boneage_jax.exporting.export_run import Request, check_request, export

    if args.prepared and args.format == "web":
        raise InputError(
            "--prepared does not go with --format=web: the page itself puts pictures right"
        )
    request = Request(args.workdir, args.output, args.precision, args.paths, args.prepared)
    check_request(args.format, request)
    prepare_jax()
    print(*export(args.format, request), sep="\n")
    return 0


def run() -> None:
    """Runs the command; entry point of the console script boneage-export."""
    run_door(main)


if __name__ == "__main__":
    run()

"""Plans a run for absent hardware: counts, bounds and cost of its train step.

usage: python -m boneage_jax.plan --config=RECIPE[:PRESET] --topology=TOPOLOGY
                                  [--output=FILE.json] [--config.KEY=VALUE ...]

  --config      a recipe, as for boneage_jax.main, e.g. cls:rsna; its data is not needed
  --topology    TPUs as libtpu names them (v5e:2x4, v6e:4x4, v5p:2x2x2, v4:2x2x2, v5e:16x16), whose
                compiler is asked: pip install 'boneage_jax[plan]'; or a number of GPUs (gpu:8 or
                h100:8, a100:8), for which only what needs no compiler is reported

The actual train step is compiled but never run; this takes minutes for EfficientNet-B4 at 512 px.
"""

import json
from collections.abc import Sequence

from boneage_jax.cli import Parser, parse_config, path_argument, run_door
from boneage_jax.errors import InputError
from boneage_jax.ranges import Range
from boneage_jax.storage.safe_write import check_writable, writing

_RANGES = {"train_images": Range(0, 1e12), "price_per_chip_hour": Range(0, 1e6)}


def main(argv: Sequence[str]) -> int:
    """Plans the run given by `argv` and prints counts and bounds; returns the exit status."""
    parser = Parser(__doc__, extensions=True)
    parser.add_argument("--topology", default="", help="see above")
    parser.add_argument("--output", type=path_argument, help="also write everything as JSON")
    parser.add_argument("--train_images", type=int, default=0, help="if unknown without the data")
    parser.add_argument(
        "--price_per_chip_hour", type=float, help="USD, instead of boneage_jax/planning/chips.py"
    )
    args, rest = parser.parse_known_args(argv)
    if not args.topology:
        raise InputError("--topology=TOPOLOGY is needed, e.g. --topology=v5e:2x4 or gpu:8")
    for name, found in _RANGES.items():
        if (getattr(args, name) or 0) not in found:
            raise InputError(f"--{name}={getattr(args, name)} must be {found}")
    if args.output and not args.output.parent.is_dir():
        raise InputError(f"--output={args.output}: there is no folder {args.output.parent}")
    if args.output and args.output.is_dir():
        raise InputError(f"--output={args.output} is a folder; name a file")
    if args.output:
        check_writable(args.output.parent)

    import jax

    from boneage_jax.planning.plan_run import plan_run
    from boneage_jax.planning.plan_text import plan_lines

    jax.config.update("jax_platforms", "cpu")  # leaves TPUs and GPUs of this machine alone
    config, _, _ = parse_config(rest)
    plan = plan_run(
        config, args.topology, price=args.price_per_chip_hour, train_images=args.train_images
    )
    print(*plan_lines(plan), sep="\n")
    if args.output:
        with writing(args.output):
            args.output.write_text(json.dumps(plan, indent=1) + "\n")
    return 0


def run() -> None:
    """Runs the command; entry point of the console script boneage-plan."""
    run_door(main, computes=False)


if __name__ == "__main__":
    run()

"""Plans a run on a machine that is not here.

usage: python -m boneage_jax.plan --config=FILE.py[:PRESET] --topology=TOPOLOGY
                                  [--output=FILE.json] [--config.KEY=VALUE ...]

  --config      a recipe, as for boneage_jax.main, e.g. configs/cls.py:rsna; its data is not needed
  --topology    TPUs as libtpu names them (v5e:2x4, v6e:4x4, v5p:2x2x2, v4:2x2x2, v5e:16x16), whose
                compiler is asked: pip install 'boneage_jax[plan]'; or a number of GPUs (gpu:8 or
                h100:8, a100:8), for which only what needs no compiler is told
  --output      also writes everything as JSON
  --train_images=N          size of the training split, where it is not known without the data
  --price_per_chip_hour=USD instead of the price in boneage_jax/planning/chips.py

The real train step is compiled, never run. Minutes for EfficientNet-B4 at 512 px.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from boneage_jax.errors import InputError, door


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Reads the flags of this door; the others, --config and its keys, are returned as they are.

    Raises:
      InputError: no topology, or a number that is none.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--topology", default="")
    parser.add_argument("--output", default="")
    parser.add_argument("--train_images", type=int, default=0)
    parser.add_argument("--price_per_chip_hour", type=float, default=None)
    try:
        told, rest = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise InputError(f"command line: {error}") from error
    if not told.topology:
        raise InputError("--topology=TOPOLOGY is needed, e.g. --topology=v5e:2x4 or gpu:8")
    for name in ("train_images", "price_per_chip_hour"):
        if (getattr(told, name) or 0) < 0:
            raise InputError(f"--{name}={getattr(told, name)} must be 0 or more")
    folder = Path(told.output).parent
    if told.output and not folder.is_dir():
        raise InputError(f"--output={told.output}: there is no folder {folder}")
    return told, rest


def main() -> int:
    """The door: a config and a topology in, counts and bounds out."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__.strip())
        return 0
    told, rest = parse(sys.argv[1:])
    import jax

    from boneage_jax.main import parse as parse_config
    from boneage_jax.planning.plan_run import plan_run
    from boneage_jax.planning.plan_text import plan_lines

    jax.config.update("jax_platforms", "cpu")  # no TPU or GPU of this machine is touched
    config, _ = parse_config(rest)
    plan = plan_run(
        config, told.topology, price=told.price_per_chip_hour, train_images=told.train_images
    )
    print(*plan_lines(plan), sep="\n")
    if told.output:
        Path(told.output).write_text(json.dumps(plan, indent=1) + "\n")
    return 0


def run() -> None:
    """Console script."""
    sys.exit(door(main))


if __name__ == "__main__":
    run()

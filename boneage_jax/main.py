"""Trains a network.

usage: python -m boneage_jax.main --config=RECIPE[:PRESET] [--workdir=DIR] [--config.KEY=VALUE ...]

  --config    a recipe: cls (bone age of phantom hands), cls:subset, seg (hand masks), a file of a
              checkout such as configs/cls.py:rsna, or one of your own
  --workdir   where the run lives, a folder or gs://BUCKET/PATH; started again there, it goes on
              from its last checkpoint (default: runs/RECIPE or runs/RECIPE-PRESET)
  --config.KEY=VALUE   changes one value of the recipe, e.g. --config.batch_size=16

--show_config prints all keys with their meaning. With several processes, those of SLURM, Cloud TPU,
GKE and Open MPI 4 find each other; others need --coordinator, --processes and --process. --alone
trains in this process alone where the environment announces others that do not exist.
"""

from collections.abc import Sequence

from boneage_jax.cli import Parser, parse_config, prepare_jax, run_door


def main(argv: Sequence[str]) -> int:
    """Trains the recipe given by `argv` and prints the result; returns the exit status."""
    parser = Parser(__doc__, extensions=True)
    parser.add_argument("--show_config", action="store_true", help="print the config and exit")
    parser.add_argument("--coordinator", default="", metavar="HOST:PORT", help="of process 0")
    parser.add_argument("--processes", type=int, default=0, metavar="N", help="of the job")
    parser.add_argument("--process", type=int, default=-1, metavar="I", help="this one, from 0")
    parser.add_argument("--alone", action="store_true", help="no other processes")
    args, rest = parser.parse_known_args(argv)
    if args.show_config:
        from boneage_jax.report.config_text import config_lines

        config, _, changed = parse_config(rest)
        print(*config_lines(config, changed), sep="\n")
        return 0

    from boneage_jax.runtime.distributed import join, place
    from boneage_jax.runtime.heartbeat import Heartbeat

    join(args.coordinator, args.processes, args.process, alone=args.alone)
    with Heartbeat(expected=place()[1]):
        return _train(rest)


def _train(argv: Sequence[str]) -> int:
    config, workdir, _ = parse_config(argv)

    from boneage_jax.report.page import summary_lines
    from boneage_jax.runtime.parallel import is_first_process
    from boneage_jax.storage.bucket import address_of
    from boneage_jax.training.train import train

    prepare_jax(compile_cache=config.get("compile_cache", True), trains=True)
    report = train(config, workdir)
    if is_first_process():
        print(*summary_lines(report), f"report: {address_of(workdir)}/report.html", sep="\n")
    return 0


def run() -> None:
    """Runs the command; entry point of the console script boneage-train."""
    run_door(main, in_a_job=True)


if __name__ == "__main__":
    run()

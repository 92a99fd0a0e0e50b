"""Trains a network.

usage: python -m boneage_jax.main --config=FILE.py[:PRESET] [--workdir=DIR] [--config.KEY=VALUE ...]

  --config    a recipe, e.g. configs/cls.py (phantom hands) or configs/cls.py:rsna
  --workdir   where the run lives, a folder or gs://BUCKET/PATH; started again there, it goes on
              from its last checkpoint (default: runs/RECIPE or runs/RECIPE-PRESET)
  --coordinator=HOST:PORT --processes=N --process=I
              this process is number I of N; not needed on SLURM, Cloud TPU, GKE and Open MPI,
              where the processes find each other
  --config.KEY=VALUE   changes one value of the recipe, e.g. --config.batch_size=16;
              all keys with their meaning: boneage_jax/config.py
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from boneage_jax.errors import InputError, door
from boneage_jax.runtime.cpu_memory import use_huge_pages
from boneage_jax.runtime.xla_flags import choose_for_cpu


def parse(argv: Sequence[str]) -> tuple[ConfigDict, Path]:
    """Reads the command line.

    Returns:
      (config with overrides applied, workdir).

    Raises:
      InputError: no such recipe or preset, unknown key, or a value of the wrong type.
    """
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "recipe", flag_values=values)
    flags.DEFINE_string("workdir", "", "folder of the run", flag_values=values)
    given = [a.split("=", 1)[1] for a in argv if a.startswith("--config=")]
    if not given:
        raise InputError("--config=FILE.py[:PRESET] is needed, e.g. --config=configs/cls.py")
    file, _, preset = given[-1].partition(":")
    if not Path(file).is_file():
        raise InputError(f"--config={file}: there is no such recipe file")
    try:
        rest = values([sys.argv[0], *argv])[1:]
    except (AttributeError, KeyError) as error:
        # ml_collections quotes the key, and quotes that again; its hint follows on a second line.
        key = str(error.args[0]).encode().decode("unicode_escape").replace("\n", " - ")
        key = key.strip('"').replace("'", "")
        section = any(argument.startswith("--config.bench.") for argument in argv)
        place = "benchmarking/settings.py" if section else "config.py"
        raise InputError(
            f"command line: unknown config key: {key}; see boneage_jax/{place} for all keys"
        ) from error
    except (flags.Error, TypeError, ValueError) as error:
        # Around a recipe's own error ml_collections puts a traceback; the error is its last line.
        lines = str(error).strip().splitlines()
        reason = lines[-1].partition("InputError: ")[2] or lines[0]
        raise InputError(f"command line: {reason}") from error
    if rest:
        raise InputError(f"command line: unexpected argument {rest[0]!r}; see --help")
    name = f"{Path(file).stem}-{preset}" if preset else Path(file).stem
    return values.config, Path(values.workdir or f"runs/{name}")


def main() -> int:
    """The door: one config in, one run out."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__.strip())
        return 0
    from boneage_jax.runtime.distributed import join_as_told, place
    from boneage_jax.runtime.heartbeat import Pulse

    argv = join_as_told(sys.argv[1:])
    with Pulse(expected=place()[1]):
        return _train(argv)


def _train(argv: Sequence[str]) -> int:
    config, workdir = parse(argv)

    from boneage_jax.report.page import summary_lines
    from boneage_jax.runtime.compile_cache import use_compile_cache
    from boneage_jax.runtime.compiler import hide_latency, tidy_heap
    from boneage_jax.storage.bucket import address_of
    from boneage_jax.training.train import train

    if config.get("compile_cache", True):
        use_compile_cache()
    hide_latency()
    tidy_heap()
    report = train(config, workdir)
    print(*summary_lines(report), f"report: {address_of(workdir)}/report.html", sep="\n")
    return 0


def run() -> None:
    """Console script."""
    choose_for_cpu()
    use_huge_pages()  # before anything loads JAX
    from boneage_jax.runtime.distributed import parting

    with parting():
        sys.exit(door(main))


if __name__ == "__main__":
    run()

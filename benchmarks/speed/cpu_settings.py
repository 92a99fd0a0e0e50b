"""What the settings of a training on a CPU are worth: a train step, each in a fresh process.

usage: python -m benchmarks.speed.cpu_settings --output=FILE.csv [--rounds=3] [--steps=12]
           [MODEL:SIZE:BATCH ...]

Settings, each beside those before it: malloc as it is; memory held between steps
(`cpu_memory.hold_memory`, `process_setup.dispatch_on_caller`); XLA's flags
(`xla_flags.choose_for_cpu`).
Each is timed in processes that compile their step, and in processes that find it in the compilation
cache, in turns over the rounds. FILE.csv has a line per process; a JSON beside it says where.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.provenance import write_provenance
from boneage_jax.benchmarking.settings import synthetic_info

SETTINGS = ("malloc as it is", "memory held", "XLA's flags")
FIELDS = ("model", "size", "batch", "settings", "start", "first_step_seconds")
COLUMNS = (*FIELDS, "median_seconds", "low_seconds", "high_seconds", "steps")


def child(model: str, size: int, batch: int, level: int, cache: str, steps: int) -> None:
    """One process: prints its timings as JSON."""
    from boneage_jax.runtime.xla_flags import choose_for_cpu

    if level >= 2:
        choose_for_cpu()
    import jax
    import numpy as np

    from boneage_jax.benchmarking.steps import Stepper, synthetic_batch
    from boneage_jax.config import base_config, check_config
    from boneage_jax.runtime.cpu_memory import hold_memory
    from boneage_jax.runtime.process_setup import dispatch_on_caller
    from boneage_jax.training.run import build_run

    if level >= 1:
        hold_memory()
        dispatch_on_caller()
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    config = base_config()
    config.model.name, config.batch_size = model, batch
    config.task = "hand_mask" if model.startswith("unet") else "bone_age"
    info = synthetic_info(size)
    run = build_run(check_config(config), info)
    step = Stepper(run)
    images = run.parallel.put_batch(synthetic_batch(batch, info, run.task))
    seconds = []
    for _ in range(steps + 3):
        began = time.perf_counter()
        jax.block_until_ready((step(images), step.state))
        seconds.append(time.perf_counter() - began)
    low, median, high = np.quantile(seconds[3:], (0.25, 0.5, 0.75))
    print(json.dumps([seconds[0], median, low, high, steps]))


def measure(case: str, level: int, cache: Path, steps: int) -> list[float]:
    """Timings of a fresh process with the settings up to `level`."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    environment.pop("XLA_FLAGS", None)
    command = [
        *(sys.executable, "-m", "benchmarks.speed.cpu_settings", "--child"),
        *(case, str(level), str(cache), str(steps)),
    ]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Rounds of processes; writes as it goes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("cases", nargs="*", default=["efficientnet_lite0:128:8", "unet:256:8"])
    args = parser.parse_args()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with args.output.open("w", newline="") as file, tempfile.TemporaryDirectory() as scratch:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for case in args.cases:
            for number in range(2 * args.rounds):
                start = "compiled" if number < args.rounds else "from the cache"
                for level, name in enumerate(SETTINGS):
                    cache = Path(scratch, f"{case}-{level}-{min(number, args.rounds)}")
                    if number == args.rounds:
                        measure(case, level, cache, 1)  # fills it
                    times = measure(case, level, cache, args.steps)
                    row = [*case.split(":"), name, start, *(f"{x:.6g}" for x in times)]
                    writer.writerow(row)
                    file.flush()
                    print(*row, sep=", ", flush=True)
    write_provenance(args.output, vars(args))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        name, pixels, images = sys.argv[2].split(":")
        child(name, int(pixels), int(images), int(sys.argv[3]), sys.argv[4], int(sys.argv[5]))
    else:
        main()

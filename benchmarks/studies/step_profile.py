"""Where the time of a train step on a CPU goes, by kind of operation, from a profile of JAX.

usage: python -m benchmarks.studies.step_profile --output=FILE.csv [--model=b4] [--size=256]
           [--batch=8] [--steps=5]

A row per kind: calls and milliseconds per step. Products are pointwise convolutions and dense
layers, by XLA's own kernels; compiled code has its name; the rest is XLA's elementwise work. A JSON
beside it has the step's FLOPs, its time, and the machine's rate of a matrix product.
"""

import argparse
import collections
import csv
import glob
import gzip
import json
import re
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

from benchmarks.peers.contender import Settings
from benchmarks.peers.ours import recipe
from benchmarks.provenance import write_provenance
from boneage_jax.benchmarking.peaks import measure_peaks
from boneage_jax.benchmarking.settings import synthetic_info
from boneage_jax.benchmarking.steps import Stepper, synthetic_batch
from boneage_jax.runtime.native_code import load_native_code
from boneage_jax.runtime.process_setup import prepared_process
from boneage_jax.training.run import build_run

_PRODUCTS = re.compile(r"ynn_|dot|convolution|matmul")
_TARGET = re.compile(r'%?(\S+) = .*?custom_call_target="boneage_jax_(\w+)"')


def kind_of(operation: str, targets: dict[str, str]) -> str:
    """Returns the kind of an operation of XLA by its name in the program."""
    if operation in targets:
        return targets[operation].replace("_", " ")
    return "products" if _PRODUCTS.match(operation) else "elementwise work"


def profile(run: Any, steps: int) -> tuple[dict[str, tuple[float, float]], list[float]]:
    """Returns calls and milliseconds of a step by kind, and seconds of steps without profiling."""
    stepper = Stepper(run)
    batch = run.parallel.put_batch(synthetic_batch(run.config.batch_size, run.info, run.task))
    compiled = stepper.step.lower(stepper.state, stepper.empty, batch).compile()
    targets = dict(_TARGET.findall(compiled.as_text()))
    seconds = []
    for _ in range(3 + steps):
        began = time.perf_counter()
        jax.block_until_ready((stepper(batch), stepper.state))
        seconds.append(time.perf_counter() - began)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, create_perfetto_trace=True):
            for _ in range(steps):
                jax.block_until_ready((stepper(batch), stepper.state))
        (path,) = glob.glob(f"{folder}/**/perfetto_trace.json.gz", recursive=True)
        with gzip.open(path) as file:
            trace = json.load(file)
    events = trace["traceEvents"] if isinstance(trace, dict) else trace
    calls: collections.Counter[str] = collections.Counter()
    spent: collections.Counter[str] = collections.Counter()
    for event in events:
        operation = event.get("args", {}).get("hlo_op") if event.get("ph") == "X" else None
        if operation and operation == event["name"]:
            kind = kind_of(operation, targets)
            calls[kind] += 1 / steps
            spent[kind] += event["dur"] / 1000 / steps
    return {kind: (calls[kind], ms) for kind, ms in spent.most_common()}, seconds[3:]


def main() -> None:
    """Profiles and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--model", default="b4")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5)
    args = parser.parse_args()
    with prepared_process():
        load_native_code()
        settings = Settings(args.model, args.size, args.batch, "float32", "train")
        run = build_run(recipe(settings), synthetic_info(args.size))
        kinds, seconds = profile(run, args.steps)
        peak = measure_peaks(jax.devices()[0], "float32").flops_per_second
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with args.output.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["kind", "calls", "milliseconds"])
        for kind, (calls, ms) in kinds.items():
            writer.writerow([kind, f"{calls:.0f}", f"{ms:.1f}"])
            print(f"{ms:8.1f} ms {calls:6.0f} {kind}")
    write_provenance(
        args.output,
        vars(args) | {"output": args.output.name},
        median_seconds=statistics.median(seconds),
        flops=run.train_flops,
        peak_flops_per_second=peak,
        share_of_peak=run.train_flops / statistics.median(seconds) / peak,
    )


if __name__ == "__main__":
    main()

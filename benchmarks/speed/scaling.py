"""Weak scaling, as far as it can be seen without the machines.

usage: python -m benchmarks.speed.scaling tpu --output=FILE.csv [--chips=1,4,8,16,64,256]
           [--per_chip=4]
       python -m benchmarks.speed.scaling cpu --output=FILE.csv [--devices=1,2,4] [--per_chip=8]

`tpu` compiles the train step of EfficientNet-Lite0 for slices of v5e at a fixed batch per chip and
holds the all-reduced bytes of the compiled program against those that the step must reduce:
gradients and BatchNorm statistics. `cpu` times the step of the U-Net (it compiles in seconds) on
simulated devices of one host. They share its cores: that shows what the program adds, never how a
machine would scale.
"""

import argparse
import csv
import os
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.provenance import write_provenance
from boneage_jax.planning.published_data import published_info

TOPOLOGIES = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 64: "8x8", 256: "16x16"}
_SIZE = 64  # pixels


def config_of(images: int, dtype: str) -> Any:
    """A small network, EfficientNet-Lite0 or in float32 the U-Net, and so many images per step."""
    from boneage_jax.config import base_config

    config = base_config()
    if dtype == "float32":
        config.task, config.model.name = "hand_mask", "unet"
    else:
        config.model.name = "efficientnet_lite0"
    config.model.dtype = dtype
    config.data.config = str(_SIZE)
    config.batch_size = config.eval_batch_size = images
    config.steps = 100
    return config


def on_paper(chips: int, per_chip: int) -> dict[str, Any]:
    """One row: what the TPU compiler makes of the step for so many chips."""
    from boneage_jax.planning.plan_run import plan_run

    topology = f"v5e:{TOPOLOGIES[chips]}"
    plan = plan_run(config_of(chips * per_chip, "bfloat16"), topology)
    reduced = [c for c in plan["collectives"] if c["kind"] == "all-reduce"]
    others = [c for c in plan["collectives"] if c["kind"] != "all-reduce"]
    payload = sum(c["payload_bytes"] for c in reduced)
    paper = plan["all_reduce_on_paper"] if chips > 1 else 0
    return {
        "topology": topology,
        "chips": chips,
        "images_per_chip": per_chip,
        "all_reduces": sum(c["count"] for c in reduced),
        "all_reduce_bytes_compiled": payload,
        "all_reduce_bytes_paper": paper,
        "difference": payload - paper,
        "ring_bytes_sent_per_chip": round(2 * (chips - 1) / chips * payload),
        "other_collectives": "; ".join(
            f"{c['count']} {c['kind']} {c['payload_bytes']} B" for c in others
        ),
        "gflop_per_chip_ours": f"{plan['flops_per_step'] / chips / 1e9:.4f}",
        "gflop_per_chip_compiler": f"{plan['compiler_flops_per_chip'] / 1e9:.4f}",
        "mb_accessed_per_chip": f"{plan['bytes_accessed_per_chip'] / 1e6:.1f}",
        "mb_memory_per_chip": f"{plan['memory_per_chip']['total'] / 1e6:.1f}",
        "compile_seconds": f"{plan['compile_seconds']['compile']:.0f}",
        "jax": plan["versions"]["jax"],
        "libtpu": plan["versions"]["libtpu"],
    }


def on_this_host(devices: int, per_chip: int, steps: int = 10) -> dict[str, Any]:
    """One row: seconds per step on so many simulated devices, median of `steps` after two."""
    import jax
    import numpy as np

    from boneage_jax.config import check_config
    from boneage_jax.data.inputs import batch_shapes
    from boneage_jax.training.run import build_run, fresh_state

    config = check_config(config_of(devices * per_chip, "float32"))
    info, _, _ = published_info(config.data)
    run = build_run(config, info, jax.devices()[:devices])
    state = run.parallel.put_state(fresh_state(config, info, run.task, run.optimizer))
    metrics = run.parallel.put_state(run.task.metrics_type.empty())
    shapes = batch_shapes(config.batch_size, info.image_size, run.task)
    batch = run.parallel.put_batch({k: np.ones(x.shape, x.dtype) for k, x in shapes.items()})
    step, seconds = run.train_step_at(0), []
    for _ in range(steps + 2):
        began = time.perf_counter()
        state, metrics = step(state, metrics, batch)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - began)
    median = float(np.median(seconds[2:]))
    return {
        "devices": devices,
        "images_per_device": per_chip,
        "seconds_per_step": f"{median:.4f}",
        "fastest": f"{min(seconds[2:]):.4f}",
        "images_per_second": f"{config.batch_size / median:.2f}",
        "steps": steps,
        "load_before": f"{os.getloadavg()[0]:.1f}",
        "cores": os.cpu_count(),
        "jax": jax.__version__,
    }


def main() -> None:
    """Writes one line per machine, as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("where", choices=("tpu", "cpu"))
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--chips", default="1,4,8,16,64,256")
    parser.add_argument("--devices", default="1,2,4")
    parser.add_argument("--per_chip", type=int, default=0)
    args = parser.parse_args()
    numbers = [int(n) for n in (args.chips if args.where == "tpu" else args.devices).split(",")]
    import jax

    jax.config.update("jax_platforms", "cpu")
    if args.where == "cpu":
        jax.config.update("jax_num_cpu_devices", max(numbers))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with args.output.open("w", newline="") as file:
        writer = None
        for number in numbers:
            if args.where == "tpu":
                row = on_paper(number, args.per_chip or 4)
            else:
                row = on_this_host(number, args.per_chip or 8)
            writer = writer or csv.DictWriter(file, row)
            if not file.tell():
                writer.writeheader()
            writer.writerow(row)
            file.flush()
            print(row, file=sys.stderr)
    write_provenance(args.output, vars(args))


if __name__ == "__main__":
    main()

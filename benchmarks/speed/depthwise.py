"""Every depthwise convolution of a network, by each implementation.

usage: python -m benchmarks.speed.depthwise --output=FILE.csv [--model=efficientnet_b4]
           [--size=256] [--batch=8] [--dtype=float32]

One line per distinct layer: how often the network has it, and milliseconds (median of --repeats
calls, implementations in turns) of the forward pass, and of forward pass and both gradients
together.
"""

import argparse
import collections
import functools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.provenance import write_rows
from boneage_jax.models.depthwise import depthwise_conv
from boneage_jax.models.efficientnet import STAGES, VARIANTS, round_filters, stage_repeats
from boneage_jax.runtime.process_setup import prepared_process

Layer = tuple[int, int, int, int]  # input pixels per side, channels, kernel, stride


def layers(variant: str, size: int) -> Iterator[Layer]:
    """The depthwise convolutions of a network, from the input on."""
    spec = VARIANTS[variant]
    channels = 32 if spec.lite else round_filters(32, spec.width)
    size = math.ceil(size / 2)
    for stage, repeats in zip(STAGES, stage_repeats(spec), strict=True):
        for repeat in range(repeats):
            stride = stage.stride if repeat == 0 else 1
            yield size, channels * stage.expand, stage.kernel, stride
            size, channels = math.ceil(size / stride), round_filters(stage.filters, spec.width)


def contenders(layer: Layer, batch: int, dtype: Any, names: list[str]) -> dict[str, Callable]:
    """Calls to time, by column: implementation and pass."""
    size, channels, window, stride = layer
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (batch, size, size, channels), dtype)
    kernel = jax.random.normal(keys[1], (window, window, 1, channels), dtype)
    out = -(-size // stride)
    grad = jax.random.normal(keys[2], (batch, out, out, channels), dtype)

    def both(conv: Callable, x: jax.Array, kernel: jax.Array, grad: jax.Array) -> Any:
        y, pull = jax.vjp(conv, x, kernel)
        return y, pull(grad)

    calls: dict[str, Callable] = {}
    for name in names:
        conv = functools.partial(depthwise_conv, stride=stride, implementation=name)
        calls[f"{name}_forward_ms"] = functools.partial(jax.jit(conv), x, kernel)
        train = jax.jit(functools.partial(both, conv))
        calls[f"{name}_train_ms"] = functools.partial(train, x, kernel, grad)
    return calls


def timed(calls: dict[str, Callable], repeats: int) -> dict[str, float]:
    """Median milliseconds of each call, in turns; one call each goes before the clock."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        jax.block_until_ready(call())
    for _ in range(repeats):
        for name, call in calls.items():
            began = time.perf_counter()
            jax.block_until_ready(call())
            samples[name].append(1e3 * (time.perf_counter() - began))
    return {name: statistics.median(times) for name, times in samples.items()}


def main() -> None:
    """Writes one line per distinct layer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", default="efficientnet_b4", choices=sorted(VARIANTS))
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--implementations", default="lax,shift")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", required=True, type=Path)
    args = parser.parse_args()
    names = args.implementations.split(",")
    if not set(names) <= {"lax", "shift"}:  # as a convolution alone `fused` is lax
        parser.error(f"--implementations={args.implementations}: choose of lax,shift")
    device, table = jax.devices()[0], []
    counts = collections.Counter(layers(args.model, args.size))
    for layer, count in counts.items():
        calls = contenders(layer, args.batch, jnp.dtype(args.dtype), names)
        row = dict(zip(("size", "channels", "kernel", "stride"), layer, strict=True))
        row = {"backend": device.platform, "dtype": args.dtype, "batch": args.batch, **row}
        row |= {"layers": count}
        row |= {name: f"{ms:.3f}" for name, ms in timed(calls, args.repeats).items()}
        print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        table.append(row)
    write_rows(args.output, table, vars(args))


if __name__ == "__main__":
    with prepared_process():
        main()

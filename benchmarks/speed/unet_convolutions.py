"""Each 3x3 convolution of a U-Net alone: forward, gradient of its input, gradient of its weights.

By lax and by `boneage_jax.models.convolution`, in turns.

usage: python -m benchmarks.speed.unet_convolutions --output=FILE.csv [--model=unet_10]
           [--size=256] [--batch=8] [--repetitions=7]

Their sum, beside the time of the whole train step, says how much of it is the library's
convolutions and how much is everything else.
"""

import argparse
import collections
import csv
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.provenance import write_provenance
from boneage_jax.runtime.process_setup import prepared_process

COLUMNS = (
    *("model", "pixels", "inputs", "outputs", "times", "pass"),
    *("implementation", "seconds", "gflop_per_second"),
)


def layers(model: str, size: int) -> dict[tuple[int, int, int], int]:
    """How often each (pixels per side, channels in, channels out) occurs."""
    from boneage_jax.models.unet import VARIANTS

    spec = VARIANTS[model]
    found: collections.Counter[tuple[int, int, int]] = collections.Counter()
    before = spec.block**2
    for level, width in enumerate(spec.widths):
        inputs = [before] if level == len(spec.widths) - 1 else [before, 2 * width]
        for first in inputs:
            for index in range(spec.convs):
                found[size // spec.block >> level, width if index else first, width] += 1
        before = width
    return dict(found)


def main() -> None:
    """Times and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--model", default="unet_10")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repetitions", type=int, default=7)
    args = parser.parse_args()

    import jax
    import numpy as np

    from boneage_jax.models.convolution import conv_general_dilated

    layout = ("NHWC", "HWIO", "NHWC")
    implementations = {"lax": jax.lax.conv_general_dilated, "ours": conv_general_dilated}

    def passes(convolve: Callable[..., jax.Array]) -> dict[str, Callable[..., jax.Array]]:
        def forward(x: jax.Array, kernel: jax.Array, g: jax.Array) -> jax.Array:
            return convolve(x, kernel, (1, 1), "SAME", dimension_numbers=layout)

        def of_input(x: jax.Array, kernel: jax.Array, g: jax.Array) -> jax.Array:
            return jax.vjp(lambda x: forward(x, kernel, g), x)[1](g)[0]

        def of_weights(x: jax.Array, kernel: jax.Array, g: jax.Array) -> jax.Array:
            return jax.vjp(lambda kernel: forward(x, kernel, g), kernel)[1](g)[0]

        return {"forward": forward, "of input": of_input, "of weights": of_weights}

    functions = {name: passes(convolve) for name, convolve in implementations.items()}
    rng = np.random.default_rng(0)
    total: collections.Counter[str] = collections.Counter()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with args.output.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for (side, inputs, outputs), times in layers(args.model, args.size).items():
            shapes = ((args.batch, side, side, inputs), (3, 3, inputs, outputs))
            x, kernel = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
            g = rng.normal(size=(args.batch, side, side, outputs)).astype(np.float32)
            x, kernel, g = (jax.device_put(value) for value in (x, kernel, g))
            flops = 2 * 9 * inputs * outputs * args.batch * side * side
            for name in functions["lax"]:
                if name == "of input" and inputs <= 4:
                    continue  # the image needs none
                compiled = {
                    who: jax.jit(found[name]).lower(x, kernel, g).compile()
                    for who, found in functions.items()
                }
                seconds = collections.defaultdict(list)
                for _ in range(args.repetitions + 2):
                    for who, call in compiled.items():
                        began = time.perf_counter()
                        jax.block_until_ready(call(x, kernel, g))
                        seconds[who].append(time.perf_counter() - began)
                for who in compiled:
                    median = float(np.median(seconds[who][2:]))
                    total[f"{who}, {name}"] += times * median
                    row = (args.model, side, inputs, outputs, times, name, who)
                    writer.writerow((*row, f"{median:.6f}", f"{flops / median / 1e9:.1f}"))
    write_provenance(args.output, vars(args), seconds=dict(total))
    print(*(f"{name}: {1e3 * seconds:.0f} ms" for name, seconds in total.items()), sep="\n")


if __name__ == "__main__":
    with prepared_process():
        main()

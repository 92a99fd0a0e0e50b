"""What a machine can do at most, measured on itself, and how far a program is from that.

Roofline model: Williams, Waterman and Patterson, Communications of the ACM 2009;52(4):65-76.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from boneage_jax.benchmarking.timing import measure

# Sides of square matrix products and megabytes streamed; accelerators need larger ones to fill.
_SIDES = {"cpu": (1024, 2048, 3072), "gpu": (4096, 8192), "tpu": (4096, 8192)}
_MEGABYTES = {"cpu": 256, "gpu": 1024, "tpu": 1024}


@dataclasses.dataclass(frozen=True)
class Peaks:
    """Ceilings of one device (of all cores, for a CPU).

    Attributes:
      flops_per_second: of the best square matrix product.
      bytes_per_second: of an array scaled in place, read and write both counted.
      dtype: of that product.
      devices: whose ceilings these are, taken together.
    """

    flops_per_second: float
    bytes_per_second: float
    dtype: str
    devices: int = 1

    def times(self, devices: int, platform: str) -> "Peaks":
        """The ceilings of `devices` of them; simulated CPU devices share the same cores."""
        if platform == "cpu":
            return self
        return Peaks(
            self.flops_per_second * devices,
            self.bytes_per_second * devices,
            self.dtype,
            devices,
        )

    def roof(self, intensity: float) -> float:
        """The most FLOP/s of a program that computes `intensity` FLOPs per byte of traffic."""
        return min(self.flops_per_second, intensity * self.bytes_per_second)


@dataclasses.dataclass(frozen=True)
class Position:
    """Where a program stands under a roof.

    Attributes:
      flops_per_second: counted FLOPs over measured seconds.
      peak_share: of the measured matrix product.
      intensity: FLOPs per byte, None where the bytes are not known.
      roof_share: of the roof at that intensity, None likewise. It can exceed 1: a cache answers
        what is counted as traffic of the memory.
    """

    flops_per_second: float
    peak_share: float
    intensity: float | None = None
    roof_share: float | None = None


def position(flops: float, traffic: float, seconds: float, peaks: Peaks) -> Position:
    """Places a program of `flops` FLOPs and `traffic` bytes (0: not known) that takes `seconds`."""
    rate = flops / seconds
    if not traffic:
        return Position(rate, rate / peaks.flops_per_second)
    intensity = flops / traffic
    return Position(rate, rate / peaks.flops_per_second, intensity, rate / peaks.roof(intensity))


def measure_peaks(
    device: jax.Device,
    dtype: str,
    *,
    repetitions: int = 10,
    sides: Sequence[int] = (),
    megabytes: int = 0,
) -> Peaks:
    """Measures both ceilings; of each the fastest call counts, since a ceiling is an extreme.

    Args:
      device: the device.
      dtype: of the matrix product, with JAX's default precision: that which networks get.
      repetitions: timed calls per size.
      sides: of the matrices; sizes that fill the platform by default.
      megabytes: of the streamed array, likewise.
    """
    sides = sides or _SIDES.get(device.platform, _SIDES["cpu"])
    megabytes = megabytes or _MEGABYTES.get(device.platform, _MEGABYTES["cpu"])
    rate = max(_product_rate(device, dtype, side, repetitions) for side in sides)
    return Peaks(rate, _stream_rate(device, megabytes, repetitions), dtype)


def _product_rate(device: jax.Device, dtype: str, side: int, repetitions: int) -> float:
    # Values near 0.01: products of ones would grow, and power draw depends on the data.
    key = jax.random.key(0)
    a = jax.device_put(0.01 * jax.random.normal(key, (side, side)).astype(dtype), device)
    product = jax.jit(jnp.dot)
    seconds = measure(
        lambda: jax.block_until_ready(product(a, a)), repetitions=repetitions, warmup=2
    )
    return 2 * side**3 / min(seconds)


def _stream_rate(device: jax.Device, megabytes: int, repetitions: int) -> float:
    # In place, else the time of new pages is measured with it: a tenth of the rate on a CPU.
    rows = 256
    shape = (rows, megabytes * 2**20 // (4 * rows))
    held: list[Any] = [jax.device_put(jnp.ones(shape, jnp.float32), device)]
    scale = jax.jit(lambda x: x * 0.999999, donate_argnums=0)

    def call() -> None:
        held[0] = jax.block_until_ready(scale(held[0]))

    seconds = measure(call, repetitions=repetitions, warmup=2)
    return 2 * held[0].nbytes / min(seconds)

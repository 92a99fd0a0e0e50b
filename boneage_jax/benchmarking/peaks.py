"""Measured peaks of a machine, and how far a program is from them.

Roofline model: Williams, Waterman and Patterson, Communications of the ACM 2009;52(4):65-76.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from boneage_jax.benchmarking.timing import measure

# Sides of square matrix products and MiB streamed; accelerators need larger ones to saturate.
_SIDES = {"cpu": (1024, 2048, 3072), "gpu": (4096, 8192), "tpu": (4096, 8192)}
_MEGABYTES = {"cpu": 256, "gpu": 1024, "tpu": 1024}


@dataclasses.dataclass(frozen=True)
class Peaks:
    """Peak rates of one device (for a CPU, of all cores).

    Attributes:
      flops_per_second: rate of the fastest square matrix product.
      bytes_per_second: rate of scaling an array in place, reads and writes both counted.
      dtype: dtype of that product.
      devices: number of devices that these rates add up.
    """

    flops_per_second: float
    bytes_per_second: float
    dtype: str
    devices: int = 1

    def times(self, devices: int, platform: str) -> "Peaks":
        """Returns the peaks of `devices` devices; simulated CPU devices share the same cores."""
        if platform == "cpu":
            return self
        return Peaks(
            self.flops_per_second * devices,
            self.bytes_per_second * devices,
            self.dtype,
            devices,
        )

    def roof(self, intensity: float) -> float:
        """Returns the upper bound on FLOP/s at `intensity` FLOPs per byte of memory traffic."""
        return min(self.flops_per_second, intensity * self.bytes_per_second)


@dataclasses.dataclass(frozen=True)
class Position:
    """Position of a program under the roofline.

    Attributes:
      flops_per_second: counted FLOPs over measured seconds.
      peak_share: fraction of the measured peak of matrix products.
      intensity: FLOPs per byte, None if the bytes are unknown.
      roof_share: fraction of the roofline at that intensity, None likewise. May exceed 1, since
        caches serve some of the bytes that are counted as memory traffic.
    """

    flops_per_second: float
    peak_share: float
    intensity: float | None = None
    roof_share: float | None = None


def position(flops: float, traffic: float, seconds: float, peaks: Peaks) -> Position:
    """Returns the position of a program under the roofline.

    Args:
      flops: FLOPs of the program.
      traffic: bytes of memory traffic, 0 if unknown.
      seconds: duration of the program.
      peaks: peaks of the devices it ran on.
    """
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
    """Measures both peaks; the fastest call counts.

    Args:
      device: the device.
      dtype: dtype of the matrix product, at JAX's default precision, as in networks.
      repetitions: timed calls per size.
      sides: sides of the square matrices; by default sizes that saturate the platform.
      megabytes: MiB of the streamed array, likewise.
    """
    sides = sides or _SIDES.get(device.platform, _SIDES["cpu"])
    megabytes = megabytes or _MEGABYTES.get(device.platform, _MEGABYTES["cpu"])
    rate = max(_product_rate(device, dtype, side, repetitions) for side in sides)
    return Peaks(rate, _stream_rate(device, megabytes, repetitions), dtype)


def _product_rate(device: jax.Device, dtype: str, side: int, repetitions: int) -> float:
    # Random values near 0.01: products of ones would grow, and power draw depends on the data.
    key = jax.random.key(0)
    a = jax.device_put(0.01 * jax.random.normal(key, (side, side)).astype(dtype), device)
    product = jax.jit(jnp.dot)
    seconds = measure(
        lambda: jax.block_until_ready(product(a, a)), repetitions=repetitions, warmup=2
    )
    return 2 * side**3 / min(seconds)


def _stream_rate(device: jax.Device, megabytes: int, repetitions: int) -> float:
    # In place; otherwise page faults are timed too and the rate on a CPU drops to a tenth.
    rows = 256
    shape = (rows, megabytes * 2**20 // (4 * rows))
    held: list[Any] = [jax.device_put(jnp.ones(shape, jnp.float32), device)]
    scale = jax.jit(lambda x: x * 0.999999, donate_argnums=0)

    def call() -> None:
        held[0] = jax.block_until_ready(scale(held[0]))

    seconds = measure(call, repetitions=repetitions, warmup=2)
    return 2 * held[0].nbytes / min(seconds)

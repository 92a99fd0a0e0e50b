"""Published peaks and prices of the chips that a run can be planned for.

The peaks are the vendors' numbers, which no program reaches; speeds derived from them are upper
bounds. Prices are on-demand list prices in US dollars without disk and network traffic. They vary
by region and seller and change over time; `--price_per_chip_hour` overrides them.
"""

import dataclasses
import math
import re

from boneage_jax.errors import InputError

_TPU_DOCS = "https://cloud.google.com/tpu/docs"
# Google's prices as listed by SkyPilot's catalogue: skypilot-org/skypilot-catalog,
# catalogs/v8/gcp/vms.csv at commit 006059e, read on 2026-11-24; us-central1 (v4: us-central2).
_TPU_PRICES = "Google Cloud us-central1 on demand, skypilot-catalog v8 at 006059e, 2026-11-24"
_GPU_PRICES = "Lambda, 8 GPUs on demand, https://lambda.ai/instances, 2026-09-20"


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published peaks and price of one kind of chip.

    Attributes:
      name: as in a topology, e.g. v5e.
      bfloat16: peak FLOP/s of dense bfloat16 matrix products.
      float32: peak FLOP/s of float32 products at JAX's default precision: one bfloat16 pass on TPU,
        TF32 on GPU.
      bandwidth: memory bandwidth in bytes/s.
      memory: memory size in bytes.
      interconnect: bytes/s to other chips of the machine in one direction, summed over all ports.
      price: US dollars per chip and hour.
      source: where the peaks are published.
      price_source: source and date of the price.
    """

    name: str
    bfloat16: float
    float32: float
    bandwidth: float
    memory: float
    interconnect: float
    price: float
    source: str
    price_source: str

    def flops(self, dtype: str) -> float:
        """Returns the peak FLOP/s of products in `dtype`, bfloat16 or float32."""
        return self.bfloat16 if dtype == "bfloat16" else self.float32


def _tpu(name: str, peak: float, bandwidth: float, memory: float, ici: float, price: float) -> Chip:
    place = _TPU_PRICES.replace("us-central1", "us-central2") if name == "v4" else _TPU_PRICES
    # 1600 Gbit/s (v5e) and 4800 Gbit/s (v5p) are for one direction: the newer v5e page gives
    # 400 GB/s for both.
    return Chip(name, peak, peak, bandwidth, memory, ici, price, f"{_TPU_DOCS}/{name}", place)


def _gpu(name: str, peak: float, bandwidth: float, nvlink: float, price: float) -> Chip:
    # NVIDIA lists twice the dense peak ("with sparsity") for H100, and TF32 at half of bfloat16.
    sheet = f"https://www.nvidia.com/en-us/data-center/{name}"
    return Chip(name, peak, peak / 2, bandwidth, 80e9, nvlink, price, sheet, _GPU_PRICES)


CHIPS = {
    chip.name: chip
    for chip in (
        _tpu("v4", 275e12, 1200e9, 32e9, 300e9, 3.22),
        _tpu("v5e", 197e12, 819e9, 16e9, 200e9, 1.20),
        _tpu("v5p", 459e12, 2765e9, 95e9, 600e9, 4.20),
        _tpu("v6e", 918e12, 1640e9, 32e9, 400e9, 2.70),
        _gpu("h100", 989.4e12, 3350e9, 450e9, 3.99),  # SXM, 80 GB
        _gpu("a100", 312e12, 2039e9, 300e9, 2.79),  # SXM, 80 GB
    )
}
_MOST_CHIPS = 2**14  # the largest slices (v5p) have 8,960; libtpu tries larger ones for hours
_GPU_NAMES = {"gpu": "h100", "cuda": "h100", "h100": "h100", "a100": "a100"}


@dataclasses.dataclass(frozen=True)
class Machine:
    """A number of chips of one kind.

    Attributes:
      topology: as given by the user, e.g. v5e:2x4.
      platform: tpu or cuda.
      count: number of chips.
      chip: None for a TPU whose peaks are not in the table.
    """

    topology: str
    platform: str
    count: int
    chip: Chip | None


def parse_machine(topology: str) -> Machine:
    """Parses a topology into a machine.

    Args:
      topology: KIND:AxB or KIND:AxBxC for a TPU, e.g. v5e:4x4 or v4:2x2x2; gpu:N or cuda:N (both
        stand for H100), h100:N or a100:N for GPUs.

    Raises:
      InputError: the text has none of these forms, or more chips than any slice.
    """
    kind, _, shape = topology.strip().lower().partition(":")
    gpu = kind in _GPU_NAMES
    if not re.fullmatch(r"[1-9]\d*" if gpu else r"[1-9]\d*(x[1-9]\d*){1,2}", shape):
        raise InputError(
            f"--topology={topology!r} must be like v5e:2x4 or v4:2x2x2 (TPU), or gpu:8, h100:8, "
            "a100:8"
        )
    count = math.prod(int(side) for side in shape.split("x"))
    if count > _MOST_CHIPS:
        raise InputError(
            f"--topology={topology!r} has {count:,} chips; no slice has more than {_MOST_CHIPS:,}"
        )
    if gpu:
        return Machine(topology, "cuda", count, CHIPS[_GPU_NAMES[kind]])
    chip = None if kind in _GPU_NAMES.values() else CHIPS.get(kind)
    return Machine(f"{kind}:{shape}", "tpu", count, chip)

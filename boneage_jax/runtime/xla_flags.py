"""How XLA's CPU backend computes; a door calls this before JAX has a backend."""

import importlib.metadata
import os
from pathlib import Path

# XLA ends the process at a flag that it does not know: none for a jaxlib that was not measured.
_MEASURED_WITH = "0.10."
# jaxlib 0.10 hands matrix products, sums and convolutions to YNNPACK. Its weight gradients of
# convolutions are 4 to 5 times slower than XLA's own: with the two others alone a step of
# `unet_10` (8 images of 256 px, 2 cores of an Intel Xeon) took 625 instead of 1,000 ms, one of
# EfficientNet-B4 1 % less.
_KERNELS = (
    "xla_cpu_experimental_ynn_fusion_type",
    "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE",
)
# XLA uses half of a 512-bit register, for the sake of processors that slow down otherwise. Those
# with bfloat16 in AVX-512 no longer do: a step of `unet` took 59 instead of 62 ms, one of
# EfficientNet-B4 1,066 instead of 1,097, of EfficientNet-Lite0 the same.
_VECTORS = ("xla_cpu_prefer_vector_width", "512")
_NO_LONGER_SLOW = "avx512_bf16"


def choose_for_cpu() -> None:
    """Leaves convolutions to XLA and uses whole vector registers, in the variable XLA_FLAGS.

    A flag that XLA_FLAGS already has stays as it is.
    """
    try:
        version = importlib.metadata.version("jaxlib")
    except importlib.metadata.PackageNotFoundError:
        return
    if not version.startswith(_MEASURED_WITH):
        return
    flags = os.environ.get("XLA_FLAGS", "").split()
    for key, value in (_KERNELS, *([_VECTORS] if _has_fast_wide_vectors() else [])):
        if not any(flag.startswith(f"--{key}") for flag in flags):
            flags.append(f"--{key}={value}")
    os.environ["XLA_FLAGS"] = " ".join(flags)


def _has_fast_wide_vectors() -> bool:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return False
    return any(line.startswith("flags") and _NO_LONGER_SLOW in line.split() for line in lines)

"""Compiler options beyond XLA's defaults: kernels and vector width on CPUs, scheduling on GPUs.

Importing this file does not load JAX: `choose_for_cpu` sets an environment variable that JAX's CPU
backend reads when it starts.
"""

import importlib.metadata
import os
import sys

from boneage_jax.runtime.machine import cpuinfo

# jaxlib 0.10 hands matrix products, sums and convolutions to YNNPACK. Its weight gradients of
# convolutions are 4 to 5 times slower than XLA's own: with YNNPACK for the other two only, a step
# of `unet_10` (8 images of 256 px, 2 cores of an Intel Xeon) took 625 instead of 1,000 ms, one of
# EfficientNet-B4 1 % less.
_KERNELS = (
    "xla_cpu_experimental_ynn_fusion_type",
    "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE",
)
# XLA uses half of each 512-bit register, because some processors slow down otherwise. Those with
# bfloat16 in AVX-512 no longer do: a step of `unet` took 59 instead of 62 ms, one of
# EfficientNet-B4 1,066 instead of 1,097, one of EfficientNet-Lite0 the same.
_VECTORS = ("xla_cpu_prefer_vector_width", "512")
_NO_LONGER_SLOW = "avx512_bf16"
# What was measured with which jaxlib. XLA ends the process on a flag that it does not know, and a
# kernel that was slow may have become fast, so other versions get no flags.
_MEASURED = {"0.10.": (_KERNELS, _VECTORS)}


def choose_for_cpu() -> None:
    """Adds flags to XLA_FLAGS: convolutions by XLA's own kernels, 512-bit vectors if they are fast.

    Call before JAX starts its CPU backend. Flags already in XLA_FLAGS are kept; if it names a file
    of flags, only that file counts.
    """
    try:
        version = importlib.metadata.version("jaxlib")
    except importlib.metadata.PackageNotFoundError:
        return
    measured = next((m for series, m in _MEASURED.items() if version.startswith(series)), ())
    flags = os.environ.get("XLA_FLAGS", "").split()
    if not measured or (flags and not flags[0].startswith("-")):
        return
    for key, value in measured:
        if (key, value) == _VECTORS and not _has_fast_wide_vectors():
            continue
        if (key, value) == _KERNELS and sys.platform == "linux" and not cpuinfo():
            value = ""  # YNNPACK fails where /proc is not mounted
        if not any(flag.startswith(f"--{key}") for flag in flags):
            flags.append(f"--{key}={value}")
    os.environ["XLA_FLAGS"] = " ".join(flags)


def _has_fast_wide_vectors() -> bool:
    return _NO_LONGER_SLOW in cpuinfo().get("flags", "").split()


def hide_latency() -> None:
    """Lets collectives overlap with computation when several GPUs train together.

    XLA's latency-hiding scheduler is on by default for TPUs, and for GPUs from effort level O1 on
    (https://openxla.org/xla/effort_levels). A level set by the user, e.g. with
    JAX_OPTIMIZATION_LEVEL, is kept.
    """
    import jax

    level = level_for(jax.default_backend(), jax.device_count())
    chosen = jax.config.jax_optimization_level  # type: ignore[attr-defined]
    if level and chosen == "UNKNOWN":
        jax.config.update("jax_optimization_level", level)


def level_for(backend: str, devices: int) -> str:
    """Returns the effort level for a backend (cpu, gpu, tpu); "" for XLA's default."""
    return "O1" if backend == "gpu" and devices > 1 else ""

"""How tests let XLA compile: without optimization, which takes a quarter of the time.

EfficientNet-Lite0's gradient at 32 px: 9 s instead of 41, with half of the memory. The quick start
in `.ci/run` compiles as users do.
"""

import importlib.metadata

# XLA ends the process at a flag that it does not know, so each was tried with these jaxlibs:
# 0.10.2, 0.11.0, 0.11.2 and 0.12.0.1.
_QUICK = {
    "0.10.": "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false",
    "0.11.": "--xla_backend_optimization_level=0",
    "0.12.": "--xla_backend_optimization_level=0",
}


def xla_flags(devices: int = 1) -> str:
    """Returns XLA_FLAGS for a process of tests with simulated CPU devices."""
    version = importlib.metadata.version("jaxlib")
    quick = [flags for series, flags in _QUICK.items() if version.startswith(series)]
    return " ".join([f"--xla_force_host_platform_device_count={devices}", *quick])

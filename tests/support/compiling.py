"""How tests let XLA compile: without optimization, which takes a quarter of the time.

EfficientNet-Lite0's gradient at 32 px: 9 s instead of 41, with half of the memory. The quick start
in `.ci/run` compiles as users do.
"""

import importlib.metadata


def xla_flags(devices: int = 1) -> str:
    """Returns XLA_FLAGS for a process of tests with simulated CPU devices."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    # XLA ends the process at a flag that it does not know.
    if importlib.metadata.version("jaxlib").startswith("0.10."):
        flags += " --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    return flags

"""Which of its kernels XLA's CPU backend takes; a door calls this before JAX has a backend."""

import importlib.metadata
import os

_FLAG = "xla_cpu_experimental_ynn_fusion_type"
# jaxlib 0.10 hands matrix products, sums and convolutions to YNNPACK. Its weight gradients of
# convolutions are 4 to 5 times slower than XLA's own: with the two others alone a step of
# `unet_10` (8 images of 256 px, 2 cores of an Intel Xeon) takes 625 instead of 1,000 ms, one of
# EfficientNet-B4 1 % less.
_MEASURED_WITH = "0.10."
_KERNELS = "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"


def choose_cpu_kernels() -> None:
    """Leaves convolutions to XLA, in the environment variable XLA_FLAGS.

    Nothing happens where XLA_FLAGS already says something about it, and with another jaxlib than
    was measured: XLA ends the process at a flag that it does not know.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    try:
        version = importlib.metadata.version("jaxlib")
    except importlib.metadata.PackageNotFoundError:
        return
    if version.startswith(_MEASURED_WITH) and _FLAG not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --{_FLAG}={_KERNELS}".strip()

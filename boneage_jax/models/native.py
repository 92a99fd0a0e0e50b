"""Compiled code for train steps on a CPU: C++ in native_code/, called through `jax.ffi`.

`boneage_jax.runtime.native_code` compiles it where there is a compiler; everything works without
it, to the same results but for rounding. Reading radiographs never uses it, so a trained network
gives the same numbers everywhere.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

TARGETS = (
    "depthwise_forward",
    "depthwise_input_gradient",
    "depthwise_kernel_gradient",
    "depthwise_fused_forward",
    "depthwise_fused_input_gradient",
    "depthwise_fused_kernel_gradient",
    "batch_norm_moments",
    "batch_norm_gradient",
    "convolution",
    "convolution_kernel_gradient",
    "after",
)

PREFIX = "boneage_jax_"  # of their names in XLA
_registered = False
_load: Callable[[], object] | None = None


def load_when_needed(load: Callable[[], object] | None) -> None:
    """Has `load` called, once, when the first train step asks for compiled code.

    So a compiler works while data is prepared.

    Args:
      load: registers the code, or finds that it cannot; None takes an earlier one back.
    """
    global _load
    _load = load


def is_pending() -> bool:
    """Returns whether `load_when_needed` has something to call."""
    return _load is not None


def register(library: Any) -> None:
    """Makes the functions of a loaded library known to XLA, once.

    Args:
      library: a `ctypes.CDLL` with the functions named in `TARGETS`.

    Raises:
      AttributeError: one of them is missing.
    """
    global _registered
    if _registered:
        return
    functions = [getattr(library, name) for name in TARGETS]  # all, before any is registered
    for name, function in zip(TARGETS, functions, strict=True):
        capsule = jax.ffi.pycapsule(function)
        jax.ffi.register_ffi_target(PREFIX + name, capsule, platform="cpu")
    _registered = True


def is_of_use() -> bool:
    """Returns whether train steps can use compiled code here: on a single CPU device.

    XLA cannot share out a call of foreign code among several.
    """
    return jax.default_backend() == "cpu" and jax.device_count() == 1


def is_enabled(dtype: Any = jnp.float32) -> bool:
    """Returns whether train steps that compute in `dtype` use compiled code."""
    return dtype == jnp.float32 and is_loaded()


def is_loaded() -> bool:
    """Returns whether compiled code is there and of use; what takes all dtypes asks for no more."""
    global _load
    if _load is not None:
        load, _load = _load, None
        load()
    return _registered and is_of_use()


def call(
    name: str, shapes: tuple[int, ...] | list[tuple[int, ...]], *args: jax.Array, **options: int
) -> Any:
    """Calls a function of `TARGETS`.

    Args:
      name: of the function.
      shapes: shape of its float32 result, or a list of those of several.
      args: float32 arrays.
      options: whole numbers.
    """
    many = isinstance(shapes, list)
    results = [jax.ShapeDtypeStruct(shape, np.float32) for shape in (shapes if many else [shapes])]
    function = jax.ffi.ffi_call(
        PREFIX + name, results if many else results[0], vmap_method="sequential"
    )
    return function(*args, **{key: np.int64(value) for key, value in options.items()})

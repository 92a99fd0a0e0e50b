"""Sets up the process for computing: memory, compiler, devices, garbage collection."""

import contextlib
import gc
import os
from collections.abc import Iterator

import jax

from boneage_jax.runtime.cpu_memory import COLLECTIONS, held_memory
from boneage_jax.runtime.native_code import native_code_ahead
from boneage_jax.runtime.xla_flags import choose_for_cpu


@contextlib.contextmanager
def prepared_process() -> Iterator[None]:
    """Context manager: sets this process up as the commands do, and restores it at the end.

    Memory of steps is held (see `boneage_jax.runtime.cpu_memory`), garbage is collected less often,
    JAX's devices are started, if they were not, with `start_devices`, and on a CPU compiled code
    is made ready (`boneage_jax.runtime.native_code`). Nested ones change nothing.
    """
    before = gc.get_threshold()
    gc.set_threshold(*(max(pair) for pair in zip(before, COLLECTIONS, strict=True)))
    try:
        with held_memory():
            start_devices()
            with native_code_ahead():
                yield
    finally:
        gc.set_threshold(*before)


def start_devices() -> None:
    """Starts JAX's devices with the compiler flags of `choose_for_cpu`.

    Has no effect on devices that were started before. The environment is as before at the end.
    """
    flags = os.environ.get("XLA_FLAGS")
    choose_for_cpu()
    dispatch_on_caller()
    try:
        jax.devices()
    finally:
        if flags is None:
            os.environ.pop("XLA_FLAGS", None)
        else:
            os.environ["XLA_FLAGS"] = flags


def dispatch_on_caller() -> None:
    """Lets a single CPU device run its programs on the thread that calls them.

    By default JAX runs them on a thread of its own, whose memory cannot be held (see
    `boneage_jax.runtime.cpu_memory`), while the caller runs ahead on cores that the program needs.
    Call before the devices start; on other devices this changes nothing.
    """
    several = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not several and jax.config.jax_num_cpu_devices in (-1, 1):  # type: ignore[attr-defined]
        jax.config.update("jax_cpu_enable_async_dispatch", False)


def blas_on_caller() -> None:
    """Lets NumPy's matrix products run on the thread that calls them, from now on.

    Threads that decode images and those of XLA leave no core for more: OpenBLAS's own wait for each
    other without yielding, which takes 8 % of the time of 350 radiographs on two cores.
    """
    from threadpoolctl import threadpool_limits

    threadpool_limits(1, user_api="blas")

"""What XLA is asked to do beyond its defaults."""

import functools

import jax

from boneage_jax.runtime.cpu_memory import close_holes

_COMPILED = "/jax/core/compile/backend_compile_duration"  # of jax.monitoring
_LONG = 1.0  # seconds of a compilation that leaves many holes


def hide_latency() -> None:
    """Lets collectives run beside the arithmetic where several GPUs train together.

    XLA's latency-hiding scheduler is on by default for TPUs, and for GPUs from effort level O1 on
    (https://openxla.org/xla/effort_levels). A level chosen by the user, e.g. with
    JAX_OPTIMIZATION_LEVEL, stays as it is.
    """
    level = level_for(jax.default_backend(), jax.device_count())
    chosen = jax.config.jax_optimization_level  # type: ignore[attr-defined]
    if level and chosen == "UNKNOWN":
        jax.config.update("jax_optimization_level", level)


def level_for(backend: str, devices: int) -> str:
    """The effort level for a backend (cpu, gpu, tpu) with so many devices; '' for XLA's own."""
    return "O1" if backend == "gpu" and devices > 1 else ""


@functools.cache
def tidy_heap() -> None:
    """Closes the holes that each long compilation leaves in the heap, before its program runs.

    Without it a process that has compiled its step takes 1.25 to 1.5 times as long for it as one
    that found it in the compilation cache (`huge_pages.close_holes`). Calls after the first do
    nothing.
    """

    def notice(event: str, duration_secs: float, **_: str | int) -> None:
        if event == _COMPILED and duration_secs > _LONG:
            close_holes()

    jax.monitoring.register_event_duration_secs_listener(notice)

"""What XLA is asked to do beyond its defaults."""

import jax


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

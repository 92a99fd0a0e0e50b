"""JAX's persistent compilation cache: keeps compiled programs across restarts."""

import hashlib
import os
import platform

import jax

from boneage_jax.runtime.cache_folder import cache_folder
from boneage_jax.runtime.machine import cpuinfo


def use_compile_cache() -> None:
    """Turns on JAX's persistent compilation cache, unless the user has chosen a folder.

    Each kind of processor has its own folder: a home directory may be shared by machines with
    different instruction sets, and a program compiled for one can crash on another.
    """
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    cache = cache_folder()
    if cache is None:
        return
    folder = cache / "compiled" / processor()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return  # a read-only home: compile every time
    if not os.access(folder, os.W_OK):
        return  # JAX would warn at every program
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if not os.environ.get("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def processor() -> str:
    """Returns a name for the kind of this machine's processor, of its features."""
    fields = cpuinfo()
    features = f"{platform.machine()} {fields.get('model name')} {fields.get('flags')}"
    arm = [fields[key] for key in ("CPU implementer", "CPU part", "Features") if key in fields]
    features = " ".join([features, *arm])
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:12]}"

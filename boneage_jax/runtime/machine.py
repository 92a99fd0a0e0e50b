"""The machine under a run: processor, devices, versions of packages that results depend on."""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

_VERSIONS = (
    "boneage_jax jax jaxlib flax optax orbax-checkpoint grain dm-pix tensorflow-datasets numpy"
)
_CPUINFO = Path("/proc/cpuinfo")  # of Linux


def cpuinfo() -> dict[str, str]:
    """Returns the fields of the first processor in /proc/cpuinfo; {} where there is no such file.

    Fields of interest: `model name` and `flags` (instruction sets, with spaces between).
    """
    try:
        text = _CPUINFO.read_text()
    except OSError:
        return {}
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip(), value.strip())
    return fields


def cpu_name() -> str:
    """Returns the marketing name of the processor, or its architecture."""
    return cpuinfo().get("model name") or platform.processor() or platform.machine()


def hardware() -> dict[str, Any]:
    """Returns devices and host of this process: platform, device, counts."""
    import jax  # callers without JAX only ask for the processor

    device = jax.devices()[0]
    return {
        "platform": device.platform,
        "device": cpu_name() if device.platform == "cpu" else device.device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "cpu_cores": os.cpu_count() or 1,
    }


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for name in _VERSIONS.split():
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found

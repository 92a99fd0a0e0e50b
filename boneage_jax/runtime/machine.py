"""The machine of a run: processor, devices, and versions of packages that affect results."""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

_VERSIONS = (
    "boneage_jax jax jaxlib flax optax orbax-checkpoint grain dm-pix tensorflow-datasets numpy"
)
_CPUINFO = Path("/proc/cpuinfo")  # Linux only


def cpuinfo() -> dict[str, str]:
    """Returns the fields of the first processor in /proc/cpuinfo; {} if there is no such file.

    Fields of interest: `model name` and `flags` (instruction sets, separated by spaces).
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
    """Returns the model name of the processor, or its architecture."""
    return cpuinfo().get("model name") or platform.processor() or platform.machine()


def hardware() -> dict[str, Any]:
    """Returns platform, device name, and numbers of devices, processes and CPU cores."""
    import jax  # here, since the other functions are used without JAX

    device = jax.devices()[0]
    return {
        "platform": device.platform,
        "device": cpu_name() if device.platform == "cpu" else device.device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "cpu_cores": os.cpu_count() or 1,
    }


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that affect results."""
    found = {"python": platform.python_version()}
    for name in _VERSIONS.split():
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found

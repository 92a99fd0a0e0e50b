"""Devices of a TPU topology to compile for, without a TPU.

libtpu contains the TPU compiler and needs no TPU for it. Without a TPU it looks for the metadata
server of a Google Cloud machine, waits, and writes to the terminal, unless a few environment
variables prevent it.
"""

import importlib.util
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

from boneage_jax.errors import InputError

INSTALL = "pip install 'boneage_jax[plan]'"
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",  # no queries to the metadata server of a cloud machine
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",  # any existing type; the topology takes precedence
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_MIN_LOG_LEVEL": "4",
    "TPU_STDERR_LOG_LEVEL": "4",
    "TPU_LOG_DIR": "disabled",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    # Disables the lock that keeps a second process from the same TPU; there is no TPU here.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def environment() -> Mapping[str, str]:
    """Returns the environment variables for loading libtpu in a process without a TPU.

    Raises:
      InputError: libtpu is not installed.
    """
    spec = importlib.util.find_spec("libtpu")
    if spec is None or spec.origin is None:
        raise InputError(f"a TPU topology needs the TPU compiler, libtpu: {INSTALL}")
    library = Path(spec.origin).with_name("libtpu.so")
    return _ENVIRONMENT | {"TPU_LIBRARY_PATH": str(library)}


def tpu_devices(topology: str) -> list[jax.Device]:
    """Returns the devices of a TPU topology; programs compile for them but cannot run on them.

    Args:
      topology: in libtpu's notation, e.g. v5e:2x4.

    Raises:
      InputError: libtpu is missing or does not know the topology.
    """
    for name, value in environment().items():
        os.environ.setdefault(name, value)
    kind, _, shape = topology.partition(":")
    options: dict[str, Any] = {}
    if math.prod(int(side) for side in shape.split("x")) == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)  # otherwise hosts have 2 x 2 chips
    if kind == "v4":
        options["chip_config_name"] = "megacore"  # both cores of a chip as one device, as on a VM
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options)
    except Exception as error:  # JaxRuntimeError, ValueError, NotImplementedError
        reason = (str(error).strip() or repr(error)).splitlines()[0][:300]
        raise InputError(
            f"--topology={topology}: libtpu does not know it ({reason}); examples: v5e:2x4, "
            "v5e:16x16, v6e:2x4, v4:2x2x2, v5p:2x2x2"
        ) from error
    return list(found.devices)

"""What the launcher of a process says in its environment about the job that the process is part of.

Importing this file does not load JAX.
"""

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from boneage_jax.errors import InputError
from boneage_jax.ranges import Range

_PORTS = Range(1, 65_535)
# What JAX reads of a SLURM step; the batch script itself has less.
_SLURM = (
    *("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS"),
    *("SLURM_PROCID", "SLURM_LOCALID"),
)
# Launchers that count their processes but do not say where the first one is.
_MUTE = {
    "OMPI_COMM_WORLD_SIZE": "OMPI_COMM_WORLD_RANK",  # Open MPI 5
    "PMI_SIZE": "PMI_RANK",  # MPICH, Intel MPI
}


class Announcement(NamedTuple):
    """A job of several processes, as its launcher announces it.

    Attributes:
      launcher: name of the launcher.
      said_by: what says so, e.g. `SLURM_STEP_NUM_TASKS=4`.
      method: `cluster_detection_method` of `jax.distributed.initialize`; None: JAX chooses.
      processes: number of processes; 0 where only JAX can find out.
    """

    launcher: str
    said_by: str
    method: str | None = None
    processes: int = 0

    def __str__(self) -> str:
        return f"{self.launcher} ({self.said_by})"


def announcement(environ: Mapping[str, str], devices: Path = Path("/dev")) -> Announcement | None:
    """Returns the job that this process is announced as a part of, None if it is alone.

    Args:
      environ: environment variables.
      devices: folder of device files, where a TPU VM lists its chips.

    Raises:
      InputError: there are several processes, and no way for them to find each other; or the
        address of the first one has another form than HOST:PORT.
    """
    announced = task_of_launcher(environ)
    if announced is not None:
        return announced
    for size, rank in _MUTE.items():
        if _count(environ, size) > 1:
            raise InputError(
                f"{size}={environ[size]} says that this is one of several processes, but not where "
                "the first of them is: give each --coordinator=HOST:PORT "
                f"--processes=${size} --process=${rank}, or --alone if there are no others"
            )
    for name in ("JAX_COORDINATOR_ADDRESS", "MEGASCALE_COORDINATOR_ADDRESS"):
        if environ.get(name):
            if name.startswith("JAX_"):
                check_address(environ[name], name)
            return Announcement("the coordinator's address", f"{name}={environ[name]}")
    # One chip of a larger slice is useless alone, so a TPU VM always queries its metadata.
    chips = [*devices.glob("accel[0-9]*"), *devices.glob("vfio/[0-9]*")]
    on_cpu = environ.get("JAX_PLATFORMS", "tpu").startswith("cpu")
    if chips and importlib.util.find_spec("libtpu") and not on_cpu:
        return Announcement("Cloud TPU", str(chips[0]))
    return None


def check_address(address: str, name: str) -> None:
    """Checks the address of a coordinator, which JAX would wait for or fail at in its own words.

    Args:
      address: HOST:PORT.
      name: what holds it, for the message.

    Raises:
      InputError: it has another form.
    """
    match = re.fullmatch(r"[^\s/]+:(\d{1,5})", address)
    if match is None or int(match[1]) not in _PORTS:
        raise InputError(f"{name}={address} must be HOST:PORT, with a port {_PORTS}")


def task_of_launcher(environ: Mapping[str, str]) -> Announcement | None:
    """Returns the job of a launcher that numbers its tasks on each node: Open MPI 4 or SLURM.

    Args:
      environ: environment variables.
    """
    # Before SLURM: mpirun starts its daemons with srun, whose variables its processes inherit.
    size = _count(environ, "OMPI_COMM_WORLD_SIZE")
    if size > 1 and "OMPI_MCA_orte_hnp_uri" in environ:
        return Announcement("Open MPI", f"OMPI_COMM_WORLD_SIZE={size}", "ompi", size)
    # SLURM_NTASKS can be that of the whole allocation: salloc's interactive step and
    # srun --preserve-env hand it on.
    name = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environ else "SLURM_NTASKS"
    size = _count(environ, name)
    if size > 1 and all(variable in environ for variable in _SLURM):
        return Announcement("SLURM", f"{name}={size}", "slurm", size)
    return None


def _count(environ: Mapping[str, str], name: str) -> int:
    """Returns a number of processes, 1 where the variable is missing or not a number."""
    value = environ.get(name, "")
    return int(value) if value.isdecimal() else 1

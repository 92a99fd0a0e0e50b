"""Runs steps on devices: pmap, or jit over a mesh.

Both run the same program on the same global batch and give the same result within float
tolerance, on one device or many:

- `jit`: the batch is one array sharded over a one-axis mesh, the state is replicated, and XLA
  inserts the reductions. BatchNorm statistics are always those of the global batch.
- `pmap`: one program per device with explicit reductions over the axis `AXIS`. BatchNorm statistics
  are per device unless `bn_sync` is set.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import clu.metrics
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from boneage_jax.errors import InputError
from boneage_jax.ranges import RANGES

AXIS = "batch"
Metrics: TypeAlias = clu.metrics.Collection
Step = Callable[..., Any]


class Parallel:
    """Places arrays and compiles steps for a fixed set of devices.

    Args:
      mode: 'jit' or 'pmap'.
      devices: devices to use; all devices of the job by default.

    Raises:
      InputError: an unknown mode, or no devices.
    """

    def __init__(self, mode: str, devices: Sequence[jax.Device] | None = None):
        if mode not in ("jit", "pmap"):
            raise InputError(f"parallel={mode!r} is unknown; choose 'jit' or 'pmap'")
        self.mode = mode
        self.devices = checked_devices(devices)
        self.mesh = Mesh(np.array(self.devices), (AXIS,))
        self.replicated = NamedSharding(self.mesh, PartitionSpec())
        self.batch_sharding = NamedSharding(self.mesh, PartitionSpec(AXIS))
        self.axis_name = AXIS if mode == "pmap" else None
        # Processes that have some of the devices: one in a job of several if it works for itself.
        self.processes = len({device.process_index for device in self.devices})
        self._traces: dict[str, int] = {}

    @property
    def device_count(self) -> int:
        return len(self.devices)

    @property
    def is_plain(self) -> bool:
        """Whether steps are programs of one device, compiled by jit."""
        debugs = jax.config.jax_disable_jit  # type: ignore[attr-defined]
        return self.mode == "jit" and self.device_count == 1 and not debugs

    def check_batch(self, name: str, batch_size: int, accumulate: int = 1) -> None:
        """Checks that every device gets the same number of images.

        Raises:
          InputError: `batch_size` does not divide evenly.
        """
        check_batch(name, batch_size, self.device_count, accumulate)

    def put_state(self, tree: Any) -> Any:
        """Replicates a tree of host or device arrays on every device."""
        if self.processes > 1:
            return jax.tree.map(
                lambda x: jax.make_array_from_process_local_data(self.replicated, np.asarray(x)),
                tree,
            )
        return jax.device_put(tree, self.replicated)

    def as_global(self, state: Any) -> Any:
        """Returns the state as global arrays of the job, as checkpoints need them; copies nothing.

        With several processes, pmap returns arrays that cover only the devices of their process.
        """
        if self.mode == "jit" or self.processes == 1:
            return state
        return jax.tree.map(
            lambda x: jax.make_array_from_single_device_arrays(
                x.shape, self.replicated, [shard.data for shard in x.addressable_shards]
            ),
            state,
        )

    def state_shapes(self, make: Callable[[], Any]) -> Any:
        """Returns shapes, dtypes and shardings of the result of `make`, without computing it."""
        return self.replicated_shapes(jax.eval_shape(make))

    def replicated_shapes(self, shapes: Any) -> Any:
        """Adds to shapes and dtypes the sharding of arrays that every device holds."""
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.replicated), shapes
        )

    def batch_shapes(self, shapes: dict[str, jax.ShapeDtypeStruct]) -> Any:
        """Returns shapes of a global batch with the sharding that `put_batch` uses under jit."""
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.batch_sharding), shapes
        )

    def put_batch(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Moves this process's part of a batch, [B / processes, ...], to its devices.

        Returns:
          Global arrays: [B, ...] for jit, [devices, B / devices, ...] for pmap.
        """
        if self.mode == "pmap":
            here = self.device_count // self.processes
            batch = {k: v.reshape(here, -1, *v.shape[1:]) for k, v in batch.items()}
        if self.processes > 1:
            return {
                k: jax.make_array_from_process_local_data(self.batch_sharding, v)
                for k, v in batch.items()
            }
        return jax.device_put(batch, self.batch_sharding)

    def train_step(self, step: Step, name: str = "train") -> Step:
        """Compiles `(state, metrics, batch) -> (state, metrics)`; the state is donated.

        Args:
          step: the pure train step.
          name: key under which `compilations` counts its traces.
        """
        counted = self._count(name, step)
        if self.mode == "pmap":
            return jax.pmap(
                counted,
                axis_name=AXIS,
                in_axes=(None, None, 0),
                out_axes=None,
                devices=self.devices,
                donate_argnums=(0,),
            )
        return jax.jit(
            counted,
            in_shardings=(self.replicated, self.replicated, self.batch_sharding),
            out_shardings=self.replicated,
            donate_argnums=(0,),
        )

    def eval_step(self, step: Step) -> Step:
        """Compiles `(variables, batch) -> (metrics, predictions)`; predictions stay sharded."""
        counted = self._count("eval", step)
        if self.mode == "pmap":
            return jax.pmap(
                counted,
                axis_name=AXIS,
                in_axes=(None, 0),
                out_axes=(None, 0),
                devices=self.devices,
            )
        return jax.jit(
            counted,
            in_shardings=(self.replicated, self.batch_sharding),
            out_shardings=(self.replicated, self.batch_sharding),
        )

    def fetch(self, predictions: dict[str, jax.Array]) -> dict[str, np.ndarray]:
        """Returns the predictions of all processes that share the devices on the host, [B, ...]."""
        if self.processes > 1:
            from jax.experimental import multihost_utils

            predictions = multihost_utils.process_allgather(predictions, tiled=True)
        arrays = {k: np.asarray(v) for k, v in predictions.items()}
        if self.mode == "pmap":
            arrays = {k: v.reshape(-1, *v.shape[2:]) for k, v in arrays.items()}
        return arrays

    @property
    def compilations(self) -> dict[str, int]:
        """Number of traces of each kind of step; more than one means a recompilation."""
        return dict(self._traces)

    def check_compiled_once(self) -> None:
        """Checks that no step was recompiled.

        Raises:
          RuntimeError: a step was traced more than once because its shapes or dtypes changed.
        """
        if jax.config.jax_disable_jit:  # type: ignore[attr-defined]
            return
        if any(traces != 1 for traces in self._traces.values()):
            raise RuntimeError(f"a step was compiled more than once: {self._traces}")

    def _count(self, kind: str, step: Step) -> Step:
        def counted(*args: Any) -> Any:
            # Runs only while jax traces the step: a second trace means a new shape or dtype.
            self._traces[kind] = self._traces.get(kind, 0) + 1
            return step(*args)

        return counted


def check_batch(name: str, batch_size: int, devices: int, accumulate: int = 1) -> None:
    """Checks that every device gets the same number of images in each micro-batch.

    Args:
      name: config key of the batch size, for the message.
      batch_size: images over all devices.
      devices: number of devices.
      accumulate: number of micro-batches.

    Raises:
      InputError: `batch_size` does not divide evenly.
    """
    parts = devices * accumulate
    if batch_size < 1 or batch_size % parts:
        raise InputError(
            f"{name}={batch_size} does not divide over {devices} devices x "
            f"{accumulate} micro-batches; use a multiple of {parts}"
        )


def mean_over_devices(tree: Any, axis_name: str | None) -> Any:
    """Averages each array over the device axis; returns `tree` if there is none."""
    return jax.lax.pmean(tree, axis_name) if axis_name else tree


def sum_over_devices(metrics: Metrics, axis_name: str | None) -> Metrics:
    """Merges the metrics of all devices; returns `metrics` if there is no device axis."""
    return jax.lax.all_gather(metrics, axis_name).reduce() if axis_name else metrics


def checked_devices(devices: Sequence[jax.Device] | None) -> list[jax.Device]:
    """Returns devices as a list; all of the job for None.

    Raises:
      InputError: not a list of devices, or an empty one.
    """
    if devices is None:
        return jax.devices()
    listed = list(devices) if isinstance(devices, list | tuple | np.ndarray) else []
    if not listed or not all(isinstance(device, jax.Device) for device in listed):
        raise InputError(f"devices={devices!r} must be a list of devices, e.g. jax.devices()[:1]")
    return listed


def round_up(batch_size: int, devices: int) -> int:
    """Returns the smallest multiple of `devices` that is at least `batch_size`.

    Raises:
      InputError: `batch_size` is not a number of images.
    """
    if not isinstance(batch_size, int) or batch_size not in RANGES["batch_size"]:
        raise InputError(f"batch_size={batch_size!r} must be a whole number {RANGES['batch_size']}")
    return -(-batch_size // devices) * devices


def process() -> tuple[int, int]:
    """Returns (index, count) of this process in the job. Initialises the devices."""
    return jax.process_index(), jax.process_count()


def is_first_process() -> bool:
    """Returns whether this is the process of the job that writes files and prints."""
    return jax.process_index() == 0

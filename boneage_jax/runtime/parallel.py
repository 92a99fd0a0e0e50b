"""How a step meets devices: pmap, or jit over a mesh.

Both run the same program on the same global batch and give the same result within float
tolerance, on one device or many:

- `jit`: the batch is one array sharded over a one-axis mesh, the state is replicated, and XLA
  inserts the reductions. BatchNorm statistics are always those of the global batch.
- `pmap`: one program per device, reductions written out by name (`AXIS`). BatchNorm statistics
  are per device unless `bn_sync` asks for the reduction.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import clu.metrics
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from boneage_jax.errors import InputError

AXIS = "batch"
Metrics: TypeAlias = clu.metrics.Collection
Step = Callable[..., Any]


class Parallel:
    """Places arrays and compiles steps for a fixed set of devices.

    Args:
      mode: 'jit' or 'pmap'.
      devices: the devices to use; all of the job by default.

    Raises:
      InputError: for an unknown mode.
    """

    def __init__(self, mode: str, devices: Sequence[jax.Device] | None = None):
        if mode not in ("jit", "pmap"):
            raise InputError(f"parallel={mode!r} is unknown; choose 'jit' or 'pmap'")
        self.mode = mode
        self.devices = list(devices if devices is not None else jax.devices())
        self.mesh = Mesh(np.array(self.devices), (AXIS,))
        self.replicated = NamedSharding(self.mesh, PartitionSpec())
        self.batch_sharding = NamedSharding(self.mesh, PartitionSpec(AXIS))
        self.axis_name = AXIS if mode == "pmap" else None
        self._traces: dict[str, int] = {}

    @property
    def device_count(self) -> int:
        return len(self.devices)

    def check_batch(self, name: str, batch_size: int, accumulate: int = 1) -> None:
        """Raises an InputError unless every device gets the same number of images."""
        check_batch(name, batch_size, self.device_count, accumulate)

    def put_state(self, tree: Any) -> Any:
        """Copies a tree of host or device arrays to every device."""
        if jax.process_count() > 1:
            return jax.tree.map(
                lambda x: jax.make_array_from_process_local_data(self.replicated, np.asarray(x)),
                tree,
            )
        return jax.device_put(tree, self.replicated)

    def as_global(self, state: Any) -> Any:
        """The state as arrays of the whole job, as checkpoints want them; nothing is copied.

        With several processes, pmap returns arrays that know only the devices of their process.
        """
        if self.mode == "jit" or jax.process_count() == 1:
            return state
        return jax.tree.map(
            lambda x: jax.make_array_from_single_device_arrays(
                x.shape, self.replicated, [shard.data for shard in x.addressable_shards]
            ),
            state,
        )

    def state_shapes(self, make: Callable[[], Any]) -> Any:
        """Shapes, dtypes and placement of what `make` returns, without computing it."""
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.replicated),
            jax.eval_shape(make),
        )

    def batch_shapes(self, shapes: dict[str, jax.ShapeDtypeStruct]) -> Any:
        """Shapes of a global batch with the placement that `put_batch` gives it under jit."""
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.batch_sharding), shapes
        )

    def put_batch(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Moves this process's part of a batch, [B / processes, ...], to its devices.

        Returns global arrays: [B, ...] for jit, [devices, B / devices, ...] for pmap.
        """
        if self.mode == "pmap":
            here = self.device_count // jax.process_count()
            batch = {k: v.reshape(here, -1, *v.shape[1:]) for k, v in batch.items()}
        if jax.process_count() > 1:
            return {
                k: jax.make_array_from_process_local_data(self.batch_sharding, v)
                for k, v in batch.items()
            }
        return jax.device_put(batch, self.batch_sharding)

    def train_step(self, step: Step, name: str = "train") -> Step:
        """Compiles `(state, metrics, batch) -> (state, metrics)`; the state is donated.

        `name` is that under which `compilations` counts it.
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
        """The predictions of the whole job on the host, [B, ...]."""
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            predictions = multihost_utils.process_allgather(predictions, tiled=True)
        arrays = {k: np.asarray(v) for k, v in predictions.items()}
        if self.mode == "pmap":
            arrays = {k: v.reshape(-1, *v.shape[2:]) for k, v in arrays.items()}
        return arrays

    @property
    def compilations(self) -> dict[str, int]:
        """How often each kind of step was traced; more than once is a recompilation."""
        return dict(self._traces)

    def check_compiled_once(self) -> None:
        """Raises RuntimeError where a step was traced more than once: its shapes have changed."""
        if any(traces != 1 for traces in self._traces.values()):
            raise RuntimeError(f"a step was compiled more than once: {self._traces}")

    def _count(self, kind: str, step: Step) -> Step:
        def counted(*args: Any) -> Any:
            # Runs only while jax traces the step: a second trace means a new shape or dtype.
            self._traces[kind] = self._traces.get(kind, 0) + 1
            return step(*args)

        return counted


def check_batch(name: str, batch_size: int, devices: int, accumulate: int = 1) -> None:
    """Raises an InputError unless every device gets the same number of images."""
    parts = devices * accumulate
    if batch_size < 1 or batch_size % parts:
        raise InputError(
            f"{name}={batch_size} does not divide over {devices} devices x "
            f"{accumulate} micro-batches; use a multiple of {parts}"
        )


def mean_over_devices(tree: Any, axis_name: str | None) -> Any:
    """Averages each array over the device axis; returns `tree` where there is none."""
    return jax.lax.pmean(tree, axis_name) if axis_name else tree


def sum_over_devices(metrics: Metrics, axis_name: str | None) -> Metrics:
    """Merges the metrics of all devices; returns `metrics` where there is no device axis."""
    return jax.lax.all_gather(metrics, axis_name).reduce() if axis_name else metrics


def round_up(batch_size: int, devices: int) -> int:
    """Returns the smallest multiple of `devices` that is at least `batch_size`."""
    return -(-batch_size // devices) * devices


def process() -> tuple[int, int]:
    """Returns (index, count) of this process in the job. Starts the devices."""
    return jax.process_index(), jax.process_count()


def is_first_process() -> bool:
    """Returns whether this process is the one of its job that writes files and prints."""
    return jax.process_index() == 0

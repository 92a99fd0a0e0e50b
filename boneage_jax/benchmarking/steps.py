"""Train, evaluation and augmentation steps of a recipe on synthetic batches on the device.

These are the actual steps of training: `build_run` builds them, the state is donated, and every
call starts from the state that the previous one returned.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from boneage_jax.benchmarking.result import Result
from boneage_jax.data.info import DataInfo
from boneage_jax.data.inputs import batch_shapes, make_inputs
from boneage_jax.models.flops import count_flops
from boneage_jax.runtime.native_code import load_native_code
from boneage_jax.tasks.task import Task
from boneage_jax.training.run import Run, build_run, fresh_state


def synthetic_batch(size: int, info: DataInfo, task: Task) -> dict[str, np.ndarray]:
    """Returns a host batch with the shapes and dtypes of training: noise images, random labels."""
    rng = np.random.default_rng(0)
    shapes = batch_shapes(size, info.image_size, task)
    values: dict[str, Callable[..., Any]] = {
        "image": lambda shape: rng.integers(0, 256, shape),
        "mask": lambda shape: rng.integers(0, 2, shape),
        "weight": np.ones,
        "draw": lambda shape: np.arange(size),
        "bone_age": lambda shape: rng.uniform(12, 216, shape),
        "male": lambda shape: rng.integers(0, 2, shape),
    }
    return {key: values[key](of.shape).astype(of.dtype) for key, of in shapes.items()}


@dataclasses.dataclass
class Prepared:
    """A compiled step that can be called repeatedly.

    Attributes:
      call: runs the step once and waits for all outputs.
      run: the run that the step belongs to.
      flops: counted FLOPs of a call.
      bytes_accessed: memory traffic of a call over all devices, by XLA's count; 0 if it gives none.
        XLA counts the body of a loop once, so this is a lower bound.
      memory: bytes on each device as XLA plans them: arguments, outputs, temporary, and aliased
        (arguments whose buffers are reused for outputs).
    """

    call: Callable[[], Any]
    run: Run
    flops: int
    bytes_accessed: float
    memory: dict[str, int]

    def result(self, case: str, name: str, samples: list[float], **note: Any) -> Result:
        """Returns a result for this step; `samples` are seconds per call."""
        return Result(
            case,
            name,
            **labels_of(self.run),
            samples=samples,
            images=self.run.config.batch_size,
            flops=self.flops,
            bytes_accessed=self.bytes_accessed,
            note=note,
        )


def labels_of(run: Run) -> dict[str, Any]:
    """Returns the columns of a result that describe a run."""
    return {
        "model": run.config.model.name,
        "image_size": run.info.image_size,
        "batch_size": run.config.batch_size,
        "dtype": run.config.model.dtype,
        "parallel": run.config.parallel,
        "devices": run.parallel.device_count,
    }


def prepare_train(
    recipe: ConfigDict, info: DataInfo, devices: Sequence[jax.Device] | None = None
) -> Prepared:
    """Returns the train step on one batch, compiled but not yet called."""
    load_native_code()  # as `boneage_jax.train` does
    run = build_run(recipe, info, devices)
    batch = run.parallel.put_batch(synthetic_batch(recipe.batch_size, info, run.task))
    if run.parallel.mode == "pmap":
        stepper = Stepper(run)
        compiled = stepper.step.lower(stepper.state, stepper.empty, batch).compile()
    else:  # before the state is made, as `boneage_jax.train` does
        empty = run.parallel.put_state(run.task.metrics_type.empty())
        step = run.train_step_at(run.phases[-1].start)
        compiling = run.begin_compiling(step.lower(run.state_shapes(), empty, batch))
        stepper = Stepper(run)
        compiled = compiling()

    def call() -> None:
        jax.block_until_ready((stepper(batch), stepper.state))

    return Prepared(call, run, run.train_flops, *_costs(compiled, run.parallel.device_count))


class Stepper:
    """Holds the state of a run and takes one step per batch, without waiting for it."""

    def __init__(self, run: Run):
        self.step = run.train_step_at(run.phases[-1].start)
        state = fresh_state(run.config, run.info, run.task, run.optimizer)
        self.state = run.parallel.put_state(state)
        self.empty = run.parallel.put_state(run.task.metrics_type.empty())

    def __call__(self, batch: Any) -> Any:
        """Takes a step and returns its metrics."""
        self.state, metrics = self.step(self.state, self.empty, batch)
        return metrics


def prepare_eval(
    recipe: ConfigDict, info: DataInfo, devices: Sequence[jax.Device] | None = None
) -> Prepared:
    """Returns the evaluation step on one batch of `eval_batch_size` images, compiled."""
    run = build_run(recipe, info, devices)
    state = fresh_state(recipe, info, run.task, run.optimizer)
    variables = run.parallel.put_state({"params": state.params, "batch_stats": state.batch_stats})
    batch = run.parallel.put_batch(synthetic_batch(recipe.eval_batch_size, info, run.task))
    compiled = run.network.eval_step.lower(variables, batch).compile()

    def call() -> None:
        jax.block_until_ready(run.network.eval_step(variables, batch))

    return Prepared(call, run, run.network.eval_flops, *_costs(compiled, run.parallel.device_count))


def prepare_augment(recipe: ConfigDict, info: DataInfo, device: jax.Device) -> Prepared:
    """Returns the part of the train step from stored images to network inputs, on one device."""
    run = build_run(recipe, info, [device])
    inputs = make_inputs(recipe, mixed=True)
    batch = jax.device_put(synthetic_batch(recipe.batch_size, info, run.task), device)

    def augment(batch: Any) -> Any:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), batch["draw"])
        return inputs(batch, keys)

    jitted = jax.jit(augment)
    compiled = jitted.lower(batch).compile()

    def call() -> None:
        jax.block_until_ready(jitted(batch))

    return Prepared(call, run, count_flops(augment, batch), *_costs(compiled, 1))


def _costs(compiled: Any, devices: int) -> tuple[float, dict[str, int]]:
    """Returns bytes accessed over all devices and planned memory per device, or (0, {})."""
    costs = compiled.cost_analysis() or {}
    costs = costs[0] if isinstance(costs, list) else costs
    planned = compiled.memory_analysis()
    names = ("argument", "output", "temp", "alias")
    memory = (
        {name: int(getattr(planned, f"{name}_size_in_bytes")) for name in names} if planned else {}
    )
    return max(float(costs.get("bytes accessed", 0.0)), 0.0) * devices, memory

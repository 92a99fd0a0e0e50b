"""A training run: a network with its optimizer, its phases and the FLOPs of its steps."""

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from boneage_jax.data.info import DataInfo
from boneage_jax.data.inputs import batch_shapes, input_shape, make_inputs
from boneage_jax.errors import InputError
from boneage_jax.inference.load_trained import check_single
from boneage_jax.inference.network import Network, build_network
from boneage_jax.models.depthwise import chosen
from boneage_jax.models.flops import count_flops
from boneage_jax.pretrained.grow import check_grown
from boneage_jax.ranges import MOST_STEPS
from boneage_jax.runtime.parallel import Parallel
from boneage_jax.storage.bucket import open_workdir
from boneage_jax.storage.checkpoints import Checkpoints
from boneage_jax.storage.state import TrainState, Tree, select
from boneage_jax.storage.workdir import read_run
from boneage_jax.tasks.registry import make_task
from boneage_jax.tasks.task import Task
from boneage_jax.training.finetune import (
    Trainable,
    check_finetune,
    in_backbone,
    pretraining_part,
    rate_factors,
    trainable_part,
)
from boneage_jax.training.nonfinite import Watched
from boneage_jax.training.optimizer import Groups, make_optimizer, peak_rate
from boneage_jax.training.phases import Phase, Stretch, plan, steps_within
from boneage_jax.training.step import TrainStep, make_train_step


@dataclasses.dataclass(frozen=True)
class Run:
    """A config turned into a training run; FLOPs are counted and steps traced on first use.

    Attributes:
      network: the network to train, with its eval step.
      optimizer: optimizer of the whole run.
      total_steps: optimizer updates of the whole run.
      trainable: trained part of the network.
      phases: phases of the run; a single one if neither image size nor trained part changes.
    """

    network: Network
    optimizer: optax.GradientTransformation
    total_steps: int
    trainable: Trainable
    phases: list[Phase]

    @property
    def config(self) -> ConfigDict:
        """Checked config."""
        return self.network.config

    @property
    def info(self) -> DataInfo:
        """Properties of the training data."""
        return self.network.info

    @property
    def parallel(self) -> Parallel:
        """Devices and how steps run on them."""
        return self.network.parallel

    @property
    def task(self) -> Task:
        """Model, loss and metrics."""
        return self.network.task

    @property
    def evaluate_every(self) -> int:
        """Steps between evaluations."""
        per_epoch = self.info.train_images / self.config.batch_size
        return max(round(self.config.evaluate_every * per_epoch), 1)

    @property
    def train_flops(self) -> int:
        """FLOPs of one train step of the last phase, on a full batch without a device axis."""
        return self._costs(self.phases[-1].stretch)

    def flops_until(self, step: int) -> int:
        """Returns the FLOPs of the first `step` train steps."""
        return sum(
            (min(step, phase.stop) - phase.start) * self._costs(phase.stretch)
            for phase in self.phases
            if phase.start < step
        )

    def state_shapes(self) -> TrainState:
        """Returns shapes, dtypes and shardings of the state."""
        return self.parallel.state_shapes(self.fresh_state)

    def fresh_state(self) -> TrainState:
        """Returns the state before the first step, see the function `fresh_state`."""
        return fresh_state(self.config, self.info, self.task, self.optimizer)

    def batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns shapes and dtypes of a global training batch."""
        return batch_shapes(self.config.batch_size, self.info.image_size, self.task)

    @functools.cached_property
    def _costs(self) -> Callable[[Stretch], int]:
        return functools.cache(self._count)

    def _count(self, stretch: Stretch) -> int:
        # A step with a device axis counts one device only. One for a TPU counts the borders of
        # strips, whose number depends on that of the devices.
        if self.parallel.mode == "pmap" or chosen(self.config.model.depthwise, True) == "fused":
            return _train_flops(self.config, self.info, stretch)
        # Shapes with shardings, so that compilation reuses the trace made for counting.
        batch = self.parallel.batch_shapes(self.batch_shapes())
        step = self._pure_steps(stretch)
        return count_flops(step, self.state_shapes(), self.task.metrics_type.empty(), batch)

    @functools.cached_property
    def _pure_steps(self) -> Callable[[Stretch], TrainStep]:
        def make(stretch: Stretch) -> TrainStep:
            images = self.config.batch_size // self.config.accumulate
            return _pure_train_step(
                self.config,
                self.info,
                stretch,
                self.total_steps,
                self.parallel.axis_name,
                images // self.parallel.device_count,
            )

        return functools.cache(make)

    def train_step_at(self, step: int) -> Any:
        """Returns the train step, on the devices, for update number `step` (from 0)."""
        phase = next(phase for phase in self.phases if step < phase.stop)
        return self._train_steps(phase.stretch)

    def compile_ahead(self, step: int) -> Callable[[], Any]:
        """Compiles the train step for update number `step` (from 0) before there is a state.

        A step of pmap is compiled by its first call instead.

        Returns:
          As `begin_compiling`.
        """
        if self.parallel.mode == "pmap":
            return lambda: None
        metrics = self.parallel.put_state(Watched.begin(self.task.metrics_type.empty()))
        batch = self.parallel.batch_shapes(self.batch_shapes())
        step_at = self.train_step_at(step)
        return self.begin_compiling(step_at.lower(self.state_shapes(), metrics, batch))

    def begin_compiling(self, lowered: jax.stages.Lowered) -> Callable[[], Any]:
        """Compiles a step before there is a state, or begins to.

        The memory of the compiler and that of the parameters should not add up. On the CPU of a
        single process they may: a thread compiles, or loads what was compiled before, while the
        caller makes the state. The first step of EfficientNet-B4 then comes 2.5 s earlier, with 0.1
        to 0.3 GB more at the peak.

        Returns:
          A function that waits for the compiled step and returns it, or raises the error.
        """
        beside = self.parallel.devices[0].platform == "cpu" and self.parallel.processes == 1
        if not beside or self.config.pretrain.data:  # pre-training would take the same cores
            compiled = lowered.compile()
            return lambda: compiled
        pool = ThreadPoolExecutor(1, "compile")
        compiling = pool.submit(lowered.compile)
        pool.shutdown(wait=False)
        return compiling.result

    @functools.cached_property
    def _train_steps(self) -> Callable[[Stretch], Any]:
        return functools.cache(self._make_train_step)

    def _make_train_step(self, stretch: Stretch) -> Any:
        name = "train" if len(self.phases) == 1 else f"train at {stretch}"
        step = functools.partial(self._pure_steps(stretch), flops=self._costs(stretch))
        return self.parallel.train_step(step, name)


def build_run(
    config: ConfigDict, info: DataInfo, devices: Sequence[jax.Device] | None = None
) -> Run:
    """Builds network, optimizer and phases; compiles nothing.

    Args:
      config: checked config.
      info: properties of the training data.
      devices: devices to run on, all by default.

    Raises:
      InputError: a config value that network, optimizer or phases do not accept.
    """
    network = build_network(config, info, devices)
    network.parallel.check_batch("batch_size", config.batch_size, config.accumulate)
    check_finetune(config)
    if config.model.grown_from:
        check_grown(config.model.grown_from, config.model.name)
    part = trainable_part(config)
    total_steps = _total_steps(config, info)
    phases = plan(config, network.input_shape, total_steps)
    return Run(network, _optimizer(config, total_steps), total_steps, part, phases)


def load_run(
    folder: str | os.PathLike[str], devices: Sequence[jax.Device] | None = None
) -> tuple[Run, TrainState, int]:
    """Loads a whole training run, to continue it by hand or to inspect its optimizer.

    Args:
      folder: workdir of a single network.
      devices: devices to run on, all by default.

    Returns:
      (the run, the state of the selected checkpoint, its step).

    Raises:
      InputError: no run in the folder, an ensemble, a published network, no checkpoint, or one that
        is damaged.
    """
    folder = open_workdir(folder)
    config, info = read_run(folder)
    check_single(folder)
    run = build_run(config, info, devices)
    checkpoints = Checkpoints(folder, run.task.metric, info=info, config=config, read_only=True)
    try:
        step = checkpoints.step_to_use(config.select)
        return run, checkpoints.restore(step, run.state_shapes()), step
    finally:
        checkpoints.close()


def _optimizer(
    config: ConfigDict, total_steps: int, *, resting: bool = False
) -> optax.GradientTransformation:
    """Builds the optimizer of a run; with `resting`, that of its heads-only steps."""
    settings, part = config.finetune, trainable_part(config)
    groups = Groups(
        in_backbone=in_backbone,
        backbone_decay=float(settings.backbone_weight_decay),
        rate_factors=None
        if settings.layer_decay == 1.0
        else lambda params: rate_factors(params, part, float(settings.layer_decay)),
        head_steps=round(settings.head_first * total_steps),
        resting=resting,
    )
    peak = peak_rate(config.optimizer, config.batch_size)
    return make_optimizer(config.optimizer, total_steps, peak=peak, groups=groups)


def _pure_train_step(
    config: ConfigDict,
    info: DataInfo,
    stretch: Stretch,
    total_steps: int,
    axis_name: str | None = None,
    images_per_device: int = 0,
) -> TrainStep:
    """Builds the train step of a stretch."""
    whole = trainable_part(config)
    part = whole.heads_only() if stretch.heads_only else whole
    return make_train_step(
        make_task(config, info, axis_name, part.frozen, images_per_device),
        _optimizer(config, total_steps, resting=stretch.heads_only),
        make_inputs(config, mixed=True, shape=stretch.shape),
        ema_decay=float(config.ema_decay),
        accumulate=config.accumulate,
        axis_name=axis_name,
        trained=whole,
        learning=part,
    )


def _total_steps(config: ConfigDict, info: DataInfo) -> int:
    if not config.budget_flops:
        epochs = math.ceil(config.epochs * info.train_images / config.batch_size)
        return _checked(config.steps or epochs, f"config.epochs={config.epochs}")
    cost = functools.cache(lambda stretch: _train_flops(config, info, stretch))
    shape = input_shape(config.data, info.image_size)
    stretches = functools.partial(plan, config, shape)
    # Pre-training has no phases: it trains the whole network at full size.
    before = config.pretrain.steps and config.pretrain.steps * _train_flops(
        pretraining_part(config), info, Stretch(shape, False)
    )
    if config.pretrain.data and _side(config.pretrain.data) != info.image_size:
        raise InputError(
            f"config.budget_flops needs pretrain.data={config.pretrain.data!r} of the size of the "
            f"data, {info.image_size}"
        )
    left = int(config.budget_flops) - info.mask_flops - before
    steps = steps_within(left, stretches, cost)
    if not steps:
        each = cost(stretches(1)[0].stretch)
        raise InputError(
            f"config.budget_flops={config.budget_flops:.3g} leaves no step: one costs {each:.3g}, "
            f"pre-training {before:.3g}, the masks {info.mask_flops:.3g}"
        )
    return _checked(steps, f"config.budget_flops={config.budget_flops:.3g}")


def _checked(steps: int, why: str) -> int:
    if steps > MOST_STEPS:
        raise InputError(f"{why} makes {steps:,} steps; at most {MOST_STEPS:,} are possible")
    return steps


def _side(data: str) -> int:
    """Returns the pixels in NAME/SIZE or NAME/SIZE-VARIANT; 0 if no size is given."""
    size = data.partition("/")[2].partition("-")[0]
    return int(size) if size.isdecimal() else 0


def _train_flops(config: ConfigDict, info: DataInfo, stretch: Stretch) -> int:
    # No schedule changes the FLOPs of a step, but a heads-only phase needs steps to exist.
    steps = 1000
    optimizer = _optimizer(config, steps)
    task = make_task(config, info, None)
    return count_flops(
        _pure_train_step(config, info, stretch, steps),
        jax.eval_shape(lambda: fresh_state(config, info, task, optimizer)),
        task.metrics_type.empty(),
        batch_shapes(config.batch_size, info.image_size, task),
    )


def fresh_state(
    config: ConfigDict, info: DataInfo, task: Task, optimizer: optax.GradientTransformation
) -> TrainState:
    """Returns the state before the first step, the same on any number of devices."""
    part = trainable_part(config)

    # One program: JAX would otherwise compile some 90 small ones.
    @jax.jit
    def make(root: jax.Array, variables: Tree) -> TrainState:
        # Copies: the state is donated to the step, which takes no buffer twice and none of NumPy.
        variables = jax.tree.map(jnp.copy, variables)
        params: Tree = variables["params"]
        trained = select(params, part)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=variables["batch_stats"],
            ema_params=jax.tree.map(jnp.copy, trained) if config.ema_decay else {},
            opt_state=optimizer.init(trained),
            rng=jax.random.key_data(jax.random.fold_in(root, 1)),
            flops_spent=jnp.zeros((2,), jnp.uint32),
        )

    root = jax.random.key(config.seed)
    shape = input_shape(config.data, info.image_size)
    variables = task.init(jax.random.fold_in(root, 0), (*shape, 1))
    return make(root, variables)

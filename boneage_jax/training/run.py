"""From a config to the objects of a run: the task, the inputs, the steps."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from boneage_jax.data.augment import AugmentConfig, augment, unaugmented
from boneage_jax.data.info import Facts
from boneage_jax.data.mix import MixConfig, mix
from boneage_jax.data.normalize import normalize
from boneage_jax.data.resample import shrink
from boneage_jax.data.source import Dataset
from boneage_jax.errors import InputError
from boneage_jax.flops import count_flops
from boneage_jax.models.registry import UNET_NAMES, create_model
from boneage_jax.runtime.parallel import Parallel
from boneage_jax.state import TrainState, Tree, select
from boneage_jax.tasks.bone_age import BoneAge, BoneAgeNet, bin_centers
from boneage_jax.tasks.hand_mask import HandMask
from boneage_jax.tasks.task import Task
from boneage_jax.training.finetune import (
    Trainable,
    check_finetune,
    in_backbone,
    pretraining_part,
    rate_factors,
    trainable_part,
)
from boneage_jax.training.optimizer import Groups, make_optimizer, peak_rate
from boneage_jax.training.phases import Phase, Stretch, plan, steps_within
from boneage_jax.training.step import Batch, Inputs, TrainStep, make_eval_step, make_train_step

_LABELS = {BoneAge.name: BoneAge.labels, HandMask.name: HandMask.labels}


def check_labels(task: str, dataset: Dataset) -> None:
    """Raises InputError where the records lack what `config.task` learns from."""
    missing = [label for label in _LABELS[task] if label not in dataset.features]
    if missing:
        raise InputError(
            f"config.task={task} needs {' and '.join(missing)}; {dataset.name} has "
            f"{', '.join(sorted(dataset.features))}; choose another config.data.name"
        )


def make_task(
    config: ConfigDict,
    facts: Facts,
    axis_name: str | None,
    frozen: frozenset[str] = frozenset(),
) -> Task:
    """The task a config names, with its model.

    Args:
      config: a checked config.
      facts: of the training data.
      axis_name: the device axis BatchNorm reduces over, or None.
      frozen: layers of the backbone that are not trained.

    Raises:
      InputError: unknown task, model or model option.
    """
    model = config.model
    if (model.name in UNET_NAMES) != (config.task == "hand_mask"):
        raise InputError(
            f"config.model.name={model.name!r} does not fit config.task={config.task!r}; "
            f"hand_mask takes {', '.join(UNET_NAMES)}, bone_age any other"
        )
    shared = {
        "dtype": jnp.dtype(model.dtype),
        "bn_momentum": float(model.bn_momentum),
        "bn_axis_name": axis_name if model.bn_sync else None,
    }
    if config.task == "hand_mask":
        return HandMask(create_model(model.name, **shared), float(config.loss.dice_weight))
    backbone = create_model(
        model.name,
        **shared,
        drop_path_rate=float(model.drop_path_rate),
        padding=model.padding,
        bn_epsilon=float(model.bn_epsilon),
        depthwise=model.depthwise,
        remat=bool(model.remat),
        frozen=frozen,
    )
    loss = config.loss
    scale = (facts.age_mean, facts.age_std) if loss.standardize else (0.0, 1.0)
    net = BoneAgeNet(
        backbone,
        sex_input=model.sex_input,
        hidden=model.hidden,
        dropout=float(model.dropout),
        centers=bin_centers(loss.bins, *scale) if loss.age == "distribution" else (),
    )
    return BoneAge(
        net,
        *scale,
        loss.age,
        float(loss.sex_weight),
        float(loss.distribution_weight),
        float(loss.sigma),
        train_mean=facts.age_mean,
    )


def make_inputs(config: ConfigDict, *, mixed: bool = False, size: int = 0) -> Inputs:
    """What turns a stored batch (uint8) into what the model reads, on the device.

    Args:
      config: a checked config.
      mixed: mix images as `config.mix` says, wherever keys are given: for training alone.
      size: pixels that images are shrunk to before they are augmented, 0 for as they are.
    """
    settings = AugmentConfig.from_dict(config.augment.to_dict())
    mixing = MixConfig.from_dict(config.mix.to_dict())
    method = config.normalize

    def inputs(batch: Batch, keys: jax.Array | None) -> Batch:
        if size:
            small = {key: shrink(batch[key], size) for key in ("image", "mask") if key in batch}
            batch = batch | small
        if keys is None:
            batch = batch | {"image": unaugmented(batch["image"], settings)}
        elif "mask" in batch:
            images, mask = augment(batch["image"], keys, settings, batch["mask"])
            batch = batch | {"image": images, "mask": mask}
        else:
            batch = batch | {"image": augment(batch["image"], keys, settings)}
        batch = batch | {"image": normalize(batch["image"], method)}
        return mix(batch, keys, mixing) if mixed and keys is not None else batch

    return inputs


@dataclasses.dataclass(frozen=True)
class Run:
    """A config made into objects; what is counted or traced is so on its first use only.

    Attributes:
      config: checked.
      facts: of the training data.
      parallel: the devices.
      task: on one of these devices.
      optimizer: of the whole run.
      total_steps: optimizer updates of the whole run.
      trainable: what is trained.
      phases: of the run, one where neither image size nor trained part changes.
    """

    config: ConfigDict
    facts: Facts
    parallel: Parallel
    task: Task
    optimizer: optax.GradientTransformation
    total_steps: int
    trainable: Trainable
    phases: list[Phase]

    @property
    def evaluate_every(self) -> int:
        """Steps between evaluations."""
        per_epoch = self.facts.train_images / self.config.batch_size
        return max(round(self.config.evaluate_every * per_epoch), 1)

    @property
    def train_flops(self) -> int:
        """FLOPs of one train step of the last phase, on a full batch without a device axis."""
        return self._costs(self.phases[-1].stretch)

    def flops_until(self, step: int) -> int:
        """FLOPs of the first `step` train steps."""
        return sum(
            (min(step, phase.stop) - phase.start) * self._costs(phase.stretch)
            for phase in self.phases
            if phase.start < step
        )

    @functools.cached_property
    def _costs(self) -> Callable[[Stretch], int]:
        return functools.cache(self._count)

    def _count(self, stretch: Stretch) -> int:
        config, facts = self.config, self.facts
        if self.parallel.mode == "pmap":  # a step that knows of its axis counts one device
            return _train_flops(config, facts, stretch)
        # Shapes with their placement: so that compiling finds the trace that counting has made.
        shapes = self.parallel.state_shapes(
            lambda: fresh_state(config, facts, self.task, self.optimizer)
        )
        batch = self.parallel.batch_shapes(batch_shapes(config.batch_size, facts, self.task))
        step = self._pure_steps(stretch)
        return count_flops(step, shapes, self.task.metrics_type.empty(), batch)

    @functools.cached_property
    def _pure_steps(self) -> Callable[[Stretch], TrainStep]:
        known = self.config, self.facts
        rest = self.total_steps, self.parallel.axis_name
        return functools.cache(lambda stretch: _pure_train_step(*known, stretch, *rest))

    def train_step_at(self, step: int) -> Any:
        """The train step on the devices that makes update number `step`, from 0."""
        phase = next(phase for phase in self.phases if step < phase.stop)
        return self._train_steps(phase.stretch)

    @functools.cached_property
    def _train_steps(self) -> Callable[[Stretch], Any]:
        return functools.cache(self._make_train_step)

    def _make_train_step(self, stretch: Stretch) -> Any:
        name = "train" if len(self.phases) == 1 else f"train at {stretch}"
        step = functools.partial(self._pure_steps(stretch), flops=self._costs(stretch))
        return self.parallel.train_step(step, name)

    @functools.cached_property
    def eval_flops(self) -> int:
        """FLOPs of one evaluation step, counted likewise."""
        task = make_task(self.config, self.facts, None)
        side = self.facts.image_size
        return count_flops(
            make_eval_step(task, make_inputs(self.config), **_eval_options(self.config)),
            jax.eval_shape(lambda: task.init(jax.random.key(0), (side, side, 1))),
            batch_shapes(self.config.eval_batch_size, self.facts, task),
        )

    @functools.cached_property
    def eval_step(self) -> Any:
        """The evaluation step on the devices."""
        return self.parallel.eval_step(
            make_eval_step(
                self.task,
                make_inputs(self.config),
                **_eval_options(self.config),
                axis_name=self.parallel.axis_name,
            )
        )


def build_run(config: ConfigDict, facts: Facts, devices: Sequence[jax.Device] | None = None) -> Run:
    """Builds task, optimizer and steps; nothing is compiled yet.

    Args:
      config: a checked config.
      facts: of the training data.
      devices: the devices to run on, all by default.

    Raises:
      InputError: a config value that the parts cannot accept.
    """
    parallel = Parallel(config.parallel, devices)
    parallel.check_batch("batch_size", config.batch_size, config.accumulate)
    parallel.check_batch("eval_batch_size", config.eval_batch_size)
    make_inputs(config)  # raises on a wrong value
    check_finetune(config)
    part = trainable_part(config)
    task = make_task(config, facts, parallel.axis_name, part.frozen)
    total_steps = _total_steps(config, facts)
    phases = plan(config, facts.image_size, total_steps)
    optimizer = _optimizer(config, total_steps)
    return Run(config, facts, parallel, task, optimizer, total_steps, part, phases)


def _optimizer(
    config: ConfigDict, total_steps: int, *, resting: bool = False
) -> optax.GradientTransformation:
    """The optimizer of a run, or with `resting` that of its steps for the heads alone."""
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
    facts: Facts,
    stretch: Stretch,
    total_steps: int,
    axis_name: str | None = None,
) -> TrainStep:
    """The train step of a stretch; it knows nothing of devices."""
    whole = trainable_part(config)
    part = whole.heads_only() if stretch.heads_only else whole
    return make_train_step(
        make_task(config, facts, axis_name, part.frozen),
        _optimizer(config, total_steps, resting=stretch.heads_only),
        make_inputs(
            config, mixed=True, size=0 if stretch.size == facts.image_size else stretch.size
        ),
        ema_decay=float(config.ema_decay),
        accumulate=config.accumulate,
        axis_name=axis_name,
        trained=whole,
        learning=part,
    )


def _total_steps(config: ConfigDict, facts: Facts) -> int:
    if not config.budget_flops:
        epochs = math.ceil(config.epochs * facts.train_images / config.batch_size)
        return config.steps or epochs
    cost = functools.cache(lambda stretch: _train_flops(config, facts, stretch))
    stretches = functools.partial(plan, config, facts.image_size)
    # Pre-training has no phases: the whole network at the full size.
    before = config.pretrain.steps and config.pretrain.steps * _train_flops(
        pretraining_part(config), facts, Stretch(facts.image_size, False)
    )
    if config.pretrain.data and _side(config.pretrain.data) != facts.image_size:
        raise InputError(
            f"config.budget_flops needs pretrain.data={config.pretrain.data!r} of the size of the "
            f"data, {facts.image_size}"
        )
    left = int(config.budget_flops) - facts.mask_flops - before
    steps = steps_within(left, stretches, cost)
    if not steps:
        each = cost(stretches(1)[0].stretch)
        raise InputError(
            f"config.budget_flops={config.budget_flops:.3g} leaves no step: one costs {each:.3g}, "
            f"pre-training {before:.3g}, the masks {facts.mask_flops:.3g}"
        )
    return steps


def _side(data: str) -> int:
    """Pixels in NAME/SIZE or NAME/SIZE-VARIANT; 0 where no size is named."""
    size = data.partition("/")[2].partition("-")[0]
    return int(size) if size.isdigit() else 0


def _train_flops(config: ConfigDict, facts: Facts, stretch: Stretch) -> int:
    # No schedule changes the FLOPs of a step; a head-first part must be there to rest.
    steps = 1000
    optimizer = _optimizer(config, steps)
    task = make_task(config, facts, None)
    return count_flops(
        _pure_train_step(config, facts, stretch, steps),
        jax.eval_shape(lambda: fresh_state(config, facts, task, optimizer)),
        task.metrics_type.empty(),
        batch_shapes(config.batch_size, facts, task),
    )


def _eval_options(config: ConfigDict) -> dict[str, Any]:
    return {"flips": config.test_flips, "views": config.test_views}


def fresh_state(
    config: ConfigDict, facts: Facts, task: Task, optimizer: optax.GradientTransformation
) -> TrainState:
    """The state before the first step, the same on any number of devices."""
    part = trainable_part(config)

    # One program: value by value JAX would compile some 90 small ones.
    @jax.jit
    def make(root: jax.Array) -> TrainState:
        variables = task.init(jax.random.fold_in(root, 0), (facts.image_size, facts.image_size, 1))
        params: Tree = variables["params"]
        trained = select(params, part)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=variables["batch_stats"],
            # A copy: the state is donated to the step, and no buffer may be donated twice.
            ema_params=jax.tree.map(jnp.copy, trained) if config.ema_decay else {},
            opt_state=optimizer.init(trained),
            rng=jax.random.key_data(jax.random.fold_in(root, 1)),
            flops_spent=jnp.zeros((2,), jnp.uint32),
        )

    return make(jax.random.key(config.seed))  # the seed as an argument: one program for all seeds


def batch_shapes(size: int, facts: Facts, task: Task) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a global batch of `size` images."""
    side = facts.image_size
    shapes = {
        "image": jax.ShapeDtypeStruct((size, side, side, 1), np.uint8),
        "weight": jax.ShapeDtypeStruct((size,), np.float32),
        "draw": jax.ShapeDtypeStruct((size,), np.uint32),
    }
    labels = {
        "bone_age": jax.ShapeDtypeStruct((size,), np.float32),
        "male": jax.ShapeDtypeStruct((size,), np.int32),
        "mask": jax.ShapeDtypeStruct((size, side, side, 1), np.uint8),
    }
    return shapes | {key: labels[key] for key in task.labels}

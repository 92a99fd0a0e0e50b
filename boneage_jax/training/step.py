"""The train step: a pure function shared by all tasks.

A task supplies model, loss and metrics (see `boneage_jax.tasks`). The step is independent of
devices: `boneage_jax.runtime.parallel` runs it on one or many. `axis_name` names the device axis
under pmap and is None under jit, where the batch is one global array.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from boneage_jax.data.inputs import Batch, Inputs
from boneage_jax.runtime.parallel import Metrics, mean_over_devices, sum_over_devices
from boneage_jax.storage.state import TrainState, Tree, add_flops, merge, select
from boneage_jax.tasks.task import Task
from boneage_jax.training.adam import global_norm
from boneage_jax.training.nonfinite import Watched, accept, all_finite, record

Wanted = Callable[[tuple[str, ...]], bool]


class TrainStep(Protocol):
    """One update: `(state, metrics, batch) -> (state, metrics)`, see `make_train_step`."""

    def __call__(
        self, state: TrainState, metrics: Any, batch: Batch, flops: int = 0
    ) -> tuple[TrainState, Any]: ...


def _everything(path: tuple[str, ...]) -> bool:
    return True


def make_train_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    inputs: Inputs,
    *,
    ema_decay: float = 0.0,
    accumulate: int = 1,
    axis_name: str | None = None,
    trained: Wanted = _everything,
    learning: Wanted | None = None,
) -> TrainStep:
    """Builds `(state, metrics, batch, flops=0) -> (state, metrics)`.

    The batch holds `image` uint8 [B, H, W, 1], `draw` uint32 [B] (running index of each image in
    the whole run, the seed of its augmentation and dropout), `weight` float32 [B] and the labels
    of the task. `flops` is the cost of a step on the whole batch, which the step adds to
    `flops_spent`. Metrics stay on the device and are merged there, without a host sync.

    A step whose loss, gradients or new running statistics are not finite leaves parameters,
    statistics, moving average and optimizer state unchanged; `step` and `flops_spent` still
    advance, and its metrics are dropped. If `metrics` is a `Watched`, such steps are counted there.

    Args:
      task: model, loss and metrics.
      optimizer: optax transformation, applied after the gradient mean over devices.
      inputs: turns the stored uint8 images into the model's input; draws augmentations if keys
        ([B]) are given.
      ema_decay: decay of the moving average of the parameters, 0 for none. Early steps use
        (1 + step) / (10 + step) if that is smaller, so that the initial values are forgotten.
      accumulate: number of micro-batches, run in sequence by a scan; must divide B.
      axis_name: device axis to reduce over, or None.
      trained: maps a path of keys to whether that parameter has optimizer state and an average.
      learning: maps a path of keys to whether this step differentiates and updates that
        parameter; a subset of `trained`, None for all of it. The backward pass does not reach
        layers before the first of these.
    """
    learning = learning or trained
    advance = optax.with_extra_args_support(optimizer).update

    def loss_fn(part: Tree, params: Tree, batch_stats: Tree, batch: Batch, keys: jax.Array) -> Any:
        params = merge(params, part)
        augment_keys, model_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        batch = inputs(batch, augment_keys)
        outputs, batch_stats = task.apply(
            {"params": params, "batch_stats": batch_stats}, batch, train=True, keys=model_keys
        )
        per_image, parts = task.loss(outputs, batch)
        # Weighted mean over the global batch, written as a local sum whose mean over devices is
        # the global mean: exact also for uneven weights across devices.
        total_weight = mean_over_devices(batch["weight"].sum(), axis_name)
        loss = (per_image * batch["weight"]).sum() / jnp.maximum(total_weight, 1e-6)
        return loss, (batch_stats, task.metrics(per_image, parts, outputs, batch))

    def gradients(state: TrainState, batch: Batch) -> Any:
        root = jax.random.wrap_key_data(state.rng)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(root, batch["draw"])
        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        args = select(state.params, learning), state.params
        if accumulate == 1:
            (loss, (stats, metrics)), grads = grad_fn(*args, state.batch_stats, batch, keys)
            return loss, grads, stats, metrics

        def micro(carry: Any, part: Any) -> Any:
            loss, grads, stats, metrics = carry
            (more_loss, (stats, new)), more = grad_fn(*args, stats, *part)
            grads = jax.tree.map(jnp.add, grads, more)
            return (loss + more_loss, grads, stats, metrics.merge(new)), None

        # Micro-batch m has the images m, m + k, m + 2k ...: the same on any number of devices,
        # since each device holds a contiguous part of the batch.
        parts = jax.tree.map(
            lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), (batch, keys)
        )
        start = (
            jnp.zeros((), jnp.float32),
            jax.tree.map(jnp.zeros_like, args[0]),
            state.batch_stats,
            task.metrics_type.empty(),
        )
        (loss, grads, stats, metrics), _ = jax.lax.scan(micro, start, parts)
        return loss, jax.tree.map(lambda g: g / accumulate, grads), stats, metrics

    # Jitted so that JAX caches its trace: under jit over a mesh, FLOP counting makes the trace
    # and compilation reuses it.
    @functools.partial(jax.jit, inline=True)
    def update(state: TrainState, batch: Batch) -> Any:
        loss, grads, batch_stats, new = gradients(state, batch)
        # One reduction for all; statistics are already equal if BatchNorm is synced.
        loss, grads, batch_stats = mean_over_devices((loss, grads, batch_stats), axis_name)
        part = select(state.params, trained)
        grads = merge(jax.tree.map(jnp.zeros_like, part), grads)
        # The same norm as in gradient clipping: XLA computes it once.
        good = all_finite(loss, global_norm(grads), batch_stats)
        updates, opt_state = advance(grads, state.opt_state, part, good=good)
        opt_state = accept(good, opt_state, state.opt_state)
        part = jax.tree.map(functools.partial(_updated, good), part, updates)
        batch_stats = accept(good, batch_stats, state.batch_stats)
        ema = state.ema_params
        if ema_decay:
            step = state.step.astype(jnp.float32)
            decay = jnp.minimum(ema_decay, (1.0 + step) / (10.0 + step))
            ema = jax.tree.map(functools.partial(_averaged, good, 1.0 - decay), part, ema)
        state = dataclasses.replace(
            state,
            step=state.step + 1,
            params=merge(state.params, part),
            batch_stats=batch_stats,
            ema_params=ema,
            opt_state=opt_state,
        )
        return state, sum_over_devices(new, axis_name), good

    def train_step(
        state: TrainState, metrics: Metrics | Watched, batch: Batch, flops: int = 0
    ) -> Any:
        state, new, good = update(state, batch)
        state = dataclasses.replace(state, flops_spent=add_flops(state.flops_spent, flops))
        return state, record(metrics, new, good, state.step)

    return train_step


# Jitted, and so traced once for each shape, not for each of hundreds of parameters.
@functools.partial(jax.jit, inline=True)
def _updated(good: jax.Array, param: jax.Array, update: jax.Array) -> Any:
    return accept(good, optax.apply_updates(param, update), param)


@functools.partial(jax.jit, inline=True)
def _averaged(good: jax.Array, size: jax.Array, new: jax.Array, old: jax.Array) -> Any:
    return accept(good, optax.incremental_update(new, old, size), old)

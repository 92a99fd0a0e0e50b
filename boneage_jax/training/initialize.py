"""Initial state of a run: a checkpoint, another run's network, pretrained weights, or random."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from boneage_jax.errors import InputError
from boneage_jax.inference.load_trained import load_trained
from boneage_jax.pretrained.grow import grow
from boneage_jax.pretrained.load_pretrained import load_pretrained
from boneage_jax.pretrained.source import as_named
from boneage_jax.runtime.watchdog import PATIENCE, waiting_for
from boneage_jax.storage.checkpoints import Checkpoints
from boneage_jax.storage.layout import PRETRAIN, is_workdir
from boneage_jax.storage.shared_workdir import catch_up
from boneage_jax.storage.state import TrainState, select, split_flops
from boneage_jax.tasks.task import Task
from boneage_jax.training.describe import say
from boneage_jax.training.finetune import pretraining_part
from boneage_jax.training.run import Run

Train = Callable[..., dict[str, Any]]


def initial_state(
    run: Run,
    workdir: Path,
    checkpoints: Checkpoints,
    batches: grain.DatasetIterator,
    start: int | None,
    train: Train,
) -> TrainState:
    """Returns the state from which a run starts or resumes, on its devices.

    Args:
      run: the run.
      workdir: workdir of the run.
      checkpoints: checkpoints of the workdir.
      batches: training batches; set to the position saved with the checkpoint.
      start: step of the checkpoint to resume from, None for a new run.
      train: `boneage_jax.train`, for pre-training.

    Raises:
      InputError: a damaged checkpoint, or weights that do not fit the network.
    """
    config = run.config
    if start is not None:
        state = checkpoints.restore(start, run.state_shapes(), batches)
        say(f"going on from the checkpoint of step {start}")
        return state
    waiting_for("the model", PATIENCE)
    state = run.fresh_state()
    if config.pretrain.data:
        folder = workdir / PRETRAIN
        say(f"pre-training on {config.pretrain.data} in {folder}")
        train(pretraining(config), folder, devices=run.parallel.devices)
        waiting_for("the pre-trained network", PATIENCE)
        catch_up(workdir)
        state = start_from(state, folder, run.network.task, rescale=False)
    elif config.init_from:
        state = start_from(
            state, config.init_from, run.network.task, grown_from=config.model.grown_from
        )
    elif config.model.pretrained:
        state = with_pretrained_backbone(state, config)
    return run.parallel.put_state(state)


def pretraining(config: ConfigDict) -> ConfigDict:
    """Returns the config of the pre-training that `config.pretrain` asks for.

    Same as `config` except for data, length and settings that do not apply to pre-training.
    """
    first = ConfigDict(config.to_dict())
    name, _, size = config.pretrain.data.partition("/")
    first.data.name, first.data.config = name, size
    first.data.raw_dir = first.data.masks = first.data.mask_mode = ""
    first.data.options = ConfigDict()
    first.data.train_split, first.data.eval_split = "train", "validation"
    first.steps, first.budget_flops = config.pretrain.steps, 0.0
    first.evaluate_every = 1e6  # once, at the end
    first.checkpoint_every = config.checkpoint_every or max(config.pretrain.steps // 10, 1)
    first.pretrain.data, first.pretrain.steps = "", 0
    first.members, first.bias_correction = 1, "none"
    return pretraining_part(first)


def start_from(
    state: TrainState,
    folder: str | os.PathLike[str],
    task: Task,
    *,
    rescale: bool = True,
    grown_from: str = "",
) -> TrainState:
    """Returns a fresh state with the parameters and running statistics of another, finished run.

    Uses the averaged parameters if that run kept them. Its FLOPs are carried over: pre-training is
    part of the total cost.

    Args:
      state: initial state of the new run.
      folder: workdir of the finished run, or a published network, see
        `boneage_jax.inference.load_trained.load_trained`.
      task: task of the new run, of the name that the other must have.
      rescale: adapt the parameters to the ages of the new data, see `Task.adapt`.
      grown_from: the other run's network, where it is a smaller one: its backbone is embedded in
        that of `state`, see `boneage_jax.pretrained.grow.grow`. Its heads are taken over if they
        read as many features.

    Raises:
      InputError: no such run, another task, or a network of another shape.
    """
    other = load_trained(folder, task=task.name)
    found = other.variables
    if grown_from:
        found, rescale = _grown_run(state, found)
    params = _same_shapes(found["params"], state.params, folder)
    if rescale:
        params = task.adapt(params, other.network.task)
    return dataclasses.replace(
        state,
        params=params,
        batch_stats=_same_shapes(found["batch_stats"], state.batch_stats, folder),
        ema_params=_averages(state, params),
        flops_spent=split_flops(other.flops_spent),
    )


def with_pretrained_backbone(state: TrainState, config: ConfigDict) -> TrainState:
    """Returns a fresh bone-age state whose backbone has the weights `config.model.pretrained`.

    The network reads images normalised by `config.normalize`, not by the constants of the source;
    both give a mean near 0 and a standard deviation near 1. The FLOPs of an own run count.

    Raises:
      InputError: the weights cannot be read or belong to another network.
    """
    model = config.model
    source, spent = as_named(model.pretrained), 0
    if is_workdir(Path(source)):
        own = load_trained(source, task="bone_age")
        found = {name: own.variables[name]["backbone"] for name in own.variables}
        spent = own.flops_spent
    else:
        found = load_pretrained(model.grown_from or model.name, source)
    if model.grown_from:
        whole = _grown_backbone(state, found)
    else:
        whole = {
            "params": dict(state.params) | {"backbone": found["params"]},
            "batch_stats": dict(state.batch_stats) | {"backbone": found["batch_stats"]},
        }
    params = _same_shapes(whole["params"], state.params, model.pretrained)
    return dataclasses.replace(
        state,
        params=params,
        batch_stats=_same_shapes(whole["batch_stats"], state.batch_stats, model.pretrained),
        ema_params=_averages(state, params),
        flops_spent=split_flops(spent),
    )


def _grown_backbone(state: TrainState, found: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the variables of a fresh state with those of a smaller backbone embedded in them."""
    fresh = jax.device_get({"params": state.params, "batch_stats": state.batch_stats})
    large = grow(found, {name: fresh[name]["backbone"] for name in fresh})
    return {name: dict(fresh[name]) | {"backbone": large[name]} for name in fresh}


def _grown_run(state: TrainState, found: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """Returns the variables of a fresh state with a smaller network embedded, heads as they fit.

    Returns:
      (the variables, whether the heads are those of the smaller network).
    """
    whole = _grown_backbone(state, {name: found[name]["backbone"] for name in found})
    heads, fresh = _without_backbone(found["params"]), _without_backbone(whole["params"])
    if jax.tree.map(np.shape, heads) == jax.tree.map(np.shape, fresh):
        return whole | {"params": whole["params"] | heads}, True
    say("the heads have random weights: those of the smaller network have another shape")
    return whole, False


def _without_backbone(params: Mapping[str, Any]) -> dict[str, Any]:
    return {name: part for name, part in params.items() if name != "backbone"}


def _averages(state: TrainState, params: Any) -> Any:
    """Copies the parameters to be averaged: a donated state must not hold a buffer twice."""
    kept = flatten_dict(state.ema_params)
    return jax.tree.map(jnp.copy, select(params, kept.__contains__))


def _same_shapes(found: Any, wanted: Any, folder: str | os.PathLike[str]) -> Any:
    """Returns `found` on the default device after checking its structure against `wanted`."""
    check_same_shapes(found, wanted, folder)
    return jax.tree.map(lambda leaf: jnp.asarray(jax.device_get(leaf)), found)


def check_same_shapes(found: Any, wanted: Any, folder: str | os.PathLike[str]) -> None:
    """Checks that two networks have arrays of the same names and shapes.

    Args:
      found: tree of arrays or of their shapes, of the network in `folder`.
      wanted: the same of the network that is to be trained.
      folder: workdir or file, for the message.

    Raises:
      InputError: an array is missing, or of another shape.
    """
    have, need = flatten_dict(found, sep="/"), flatten_dict(wanted, sep="/")
    for name in sorted(have.keys() | need.keys()):
        shapes = [list(tree[name].shape) if name in tree else "nothing" for tree in (have, need)]
        if shapes[0] != shapes[1]:
            raise InputError(
                f"{os.fspath(folder)} holds another network: {name} is {shapes[0]}, this "
                f"run needs {shapes[1]}; give both runs the same config.model, or name a smaller "
                "network as config.model.grown_from"
            )

"""Loads trained networks, of workdirs or published, without building or restoring an optimizer."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from boneage_jax.config import check_config
from boneage_jax.errors import InputError
from boneage_jax.inference.network import Network, Rows, build_network
from boneage_jax.storage.bucket import checkpoint_folder
from boneage_jax.storage.layout import MEMBERS, WEIGHTS, is_published, member_folder
from boneage_jax.storage.published import count_networks, read_network
from boneage_jax.storage.shipped import open_network
from boneage_jax.storage.state import Tree, flops_of
from boneage_jax.storage.workdir import read_config, read_run


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained network.

    Attributes:
      network: the network, without its variables.
      variables: {'params', 'batch_stats'}; averaged parameters if the run kept them.
      flops_spent: FLOPs of its training.
      step: optimizer updates done at its checkpoint.
      folder: its workdir.
    """

    network: Network
    variables: Tree
    flops_spent: int
    step: int
    folder: Path


def load_trained(
    folder: str | os.PathLike[str],
    *,
    task: str = "",
    eval_batch_size: int = 0,
    devices: Sequence[jax.Device] | None = None,
) -> Trained:
    """Loads the network of the checkpoint that a run selected.

    Args:
      folder: workdir of a training run, or a published network by name, folder or hf:OWNER/REPO;
        if that holds several networks, the first is loaded.
      task: if given, a run of another task is rejected.
      eval_batch_size: images per eval step, overrides the config if not 0.
      devices: devices to run on, all by default; with those of this process alone, the other
        processes of a job need not take part.

    Raises:
      InputError: no run in the folder, another task, an ensemble, no checkpoint, or a damaged one.
    """
    folder = open_network(folder)
    network = described_network(folder, task, eval_batch_size, devices)
    if is_published(folder):
        return _published(folder, network, 0)
    from boneage_jax.storage.checkpoints import Checkpoints  # orbax, half a second

    alone = network.parallel.processes == 1
    checkpoints = Checkpoints(
        folder,
        network.task.metric,
        info=network.info,
        config=network.config,
        read_only=True,
        alone=alone,
    )
    try:
        step = checkpoints.step_to_use(network.config.select)
        variables, spent = checkpoints.restore_network(step, network.variable_shapes())
    finally:
        checkpoints.close()
    return Trained(network, variables, flops_of(jax.device_get(spent)), step, folder)


def described_network(
    folder: Path,
    task: str = "",
    eval_batch_size: int = 0,
    devices: Sequence[jax.Device] | None = None,
) -> Network:
    """Builds the network of a run from its files, and reads none of its weights.

    Args:
      folder: local folder of the run, or of a published network.
      task, eval_batch_size, devices: see `load_trained`.

    Raises:
      InputError: no run in the folder, another task, an ensemble, or no checkpoints.
    """
    config, info = read_run(folder)
    if task and config.task != task:
        raise InputError(f"{folder} holds a run of task {config.task!r}, not {task!r}")
    if eval_batch_size:
        config = changed(config, eval_batch_size=eval_batch_size)
    if not is_published(folder):
        check_single(folder)
    return build_network(config, info, devices)


def check_single(folder: Path) -> None:
    """Checks that a local folder holds the checkpoints of one network.

    Raises:
      InputError: it holds those of several, none, or a published network.
    """
    if is_published(folder):
        raise InputError(
            f"{folder} holds a published network, which has no optimizer; name the workdir of its "
            "training, or read it with load_predictor or load_segmenter"
        )
    if (folder / MEMBERS).is_dir():
        raise InputError(f"{folder} holds an ensemble; name one of it: {folder}/{MEMBERS}/0")
    if not checkpoint_folder(folder).is_dir():
        raise InputError(f"{folder} holds no checkpoints; train first or name its workdir")


def load_members(folder: str | os.PathLike[str], **options: Any) -> list[Trained]:
    """Loads the networks of a workdir: the members of an ensemble, or the one of a single run.

    Args:
      folder: workdir of a training run, or a published network, see `load_trained`.
      **options: see `load_trained`.

    Raises:
      InputError: as `load_trained`; also if the members differ in network or data.
    """
    folder = open_network(folder)
    if is_published(folder):
        network = described_network(folder, **options)
        return [_published(folder, network, number) for number in range(count_networks(folder))]
    count = member_count(read_config(folder))
    if count == 1:
        return [load_trained(folder, **options)]
    first, *others = (load_trained(member_folder(folder, k), **options) for k in range(count))
    wanted = first.network
    for member in others:
        # One compiled step runs them all.
        models = [one.config.model.to_dict() for one in (wanted, member.network)]
        if models[0] != models[1] or member.network.info != wanted.info:
            raise InputError(f"{member.folder} differs from {first.folder}; train both again")
    return [first, *others]


def _published(folder: Path, network: Network, number: int) -> Trained:
    """Loads network `number` of a published one, whose sums were checked."""
    saved = read_network(folder, number)
    wanted = flatten_dict(network.variable_shapes(), sep="/")
    for name in sorted(saved.variables.keys() | wanted.keys()):
        shapes = [
            list(tree[name].shape) if name in tree else "nothing"
            for tree in (saved.variables, wanted)
        ]
        if shapes[0] != shapes[1]:
            raise InputError(
                f"{folder / WEIGHTS}: {name} is {shapes[0]}, config.json beside it describes a "
                f"network with {shapes[1]}; fetch the folder again"
            )
    # A network without BatchNorm has no statistics.
    variables = {"batch_stats": {}} | unflatten_dict(saved.variables, sep="/")
    return Trained(network, network.parallel.put_state(variables), saved.flops, saved.step, folder)


def member_count(config: ConfigDict) -> int:
    """Returns the number of networks that a run trains.

    `config.members`, or `budget_flops // member_flops` (at least 1) if both are set.
    """
    if not (config.member_flops and config.budget_flops):
        return int(config.members)
    return max(int(config.budget_flops // config.member_flops), 1)


def changed(config: ConfigDict, **values: Any) -> ConfigDict:
    """Returns a checked copy of a config with some of its top-level values changed."""
    copy = ConfigDict(config.to_dict())
    copy.update(values)
    return check_config(copy)


def average(parts: Sequence[Rows]) -> Rows:
    """Averages each array over the members, which all have the same keys and row order."""
    if len(parts) == 1:
        return parts[0]
    return {key: np.mean([part[key] for part in parts], axis=0) for key in parts[0]}

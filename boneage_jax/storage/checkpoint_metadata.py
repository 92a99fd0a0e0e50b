"""What a checkpoint says of itself, in orbax's metadata: checksums, position, data and network."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from ml_collections import ConfigDict

from boneage_jax.data.info import DataInfo
from boneage_jax.errors import InputError
from boneage_jax.storage.layout import CONFIG, INFO

# Keys of the metadata.
CHECKSUMS, POSITION = "checksums", "position"
_STEP, _INFO, _CONFIG = "step", "info", "config"
_FILE = "_CHECKPOINT_METADATA"  # of orbax


def described(info: DataInfo | None, config: ConfigDict | None) -> dict[str, Any]:
    """Returns the metadata that tells a run from another one with arrays of the same shapes."""
    return {
        _INFO: dataclasses.asdict(info) if info else {},
        _CONFIG: _network_of(config) if config else {},
    }


def _network_of(config: ConfigDict) -> dict[str, Any]:
    """Returns the keys of a config on which predictions depend, but not the shapes of arrays."""
    model, loss = config.model, config.loss
    return {
        "model.name": model.name,
        "model.options": model.options.to_dict(),
        "model.padding": model.padding,
        "model.bn_epsilon": float(model.bn_epsilon),
        "normalize": config.normalize,
        "loss.age": loss.age,
        "loss.standardize": loss.standardize,
    }


def metadata_of(step: int, sums: Any, position: Any, description: Mapping[str, Any]) -> Any:
    """Returns the metadata of a new checkpoint.

    Args:
      step: training steps done.
      sums: see `boneage_jax.storage.checksums.checksums`.
      position: state of the iterator of training batches.
      description: see `described`.
    """
    return {CHECKSUMS: sums, POSITION: position, _STEP: step, **description}


def read_metadata(manager: ocp.CheckpointManager, folder: Any, step: int) -> dict[str, Any]:
    """Reads the metadata of a checkpoint; {} for older ones.

    Read it before the first restore: afterwards orbax would also open every array for this.

    Args:
      manager: checkpoints in `folder`.
      folder: a local path or one in a bucket.
      step: step of the checkpoint.

    Raises:
      ValueError: it is damaged.
    """
    path = epath.Path(folder) / str(step) / _FILE
    # Orbax takes a damaged file for one without checksums.
    if path.exists() and not isinstance(json.loads(path.read_text()), dict):
        raise ValueError(f"{_FILE} is no JSON object")
    found = manager.metadata(step).custom_metadata or {}
    for key in (CHECKSUMS, _INFO, _CONFIG):
        if not isinstance(found.get(key, {}), dict):
            raise ValueError(f"{key} in its {_FILE} is no JSON object")
    return found


def check_metadata(
    saved: Mapping[str, Any], step: int, description: Mapping[str, Any], folder: Any, workdir: Path
) -> None:
    """Checks that a checkpoint is what its folder's name and the files of its run say.

    Args:
      saved: see `read_metadata`.
      step: step in the name of the folder.
      description: see `described`, of the run that restores it.
      folder, workdir: of the checkpoints and the run, for the message.

    Raises:
      InputError: another step, other training data, or another network.
    """
    if saved.get(_STEP, step) != step:
        raise InputError(
            f"{folder}/{step} is the checkpoint of step {saved[_STEP]}; rename it back"
        )
    for part, file in ((_INFO, INFO), (_CONFIG, CONFIG)):
        before, now = saved.get(part, {}), description[part]  # older checkpoints have none
        for key in sorted(before.keys() & now.keys()):
            if before[key] != now[key]:
                raise InputError(
                    f"{workdir / file} has {key}={now[key]!r}, but the checkpoint of "
                    f"step {step} was trained with {before[key]!r}; put the file back"
                )


def kept_paths(saved: Mapping[str, Any], folder: Any, step: int) -> set[str]:
    """Returns the paths of a checkpoint's arrays, e.g. `.params['top_conv']['kernel']`."""
    known = saved.get(CHECKSUMS)
    if known:
        return set(known)
    # Slower: orbax opens every array.
    tree = ocp.PyTreeCheckpointer().metadata(epath.Path(folder) / str(step) / "state")
    leaves = jax.tree_util.tree_leaves_with_path(tree.item_metadata.tree)
    return {f".{path[0].key}{jax.tree_util.keystr(path[1:])}" for path, _ in leaves}

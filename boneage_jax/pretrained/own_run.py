"""Loads the backbone of a bone-age run of this library as pretrained weights."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from boneage_jax.errors import InputError
from boneage_jax.inference.load_trained import load_trained
from boneage_jax.pretrained.weight import Tree, Weight, read_tree
from boneage_jax.storage.workdir import read_config


def own_config(name: str, folder: Path) -> Any:
    """Returns the config of the run in `folder`, which must be of network `name`.

    Raises:
      InputError: the run is of another network; the message does not name the folder.
    """
    config = read_config(folder)
    trained = config.model.name
    if trained != name:
        raise InputError(
            f"is a run of {trained}, not of {name}; name the same network, or a smaller one as "
            "config.model.grown_from"
        )
    return config


def own_variables(name: str, folder: Path, like: Any, classes: int) -> dict[str, Any]:
    """Returns {'params', 'batch_stats'} of the backbone of the run in `folder`, float32 NumPy.

    Args:
      name: name of the network.
      folder: workdir of a bone-age run.
      like: the shapes expected.
      classes: number of classes of the classifier; a run has no classifier, so it must be 0.

    Raises:
      InputError: another network or shape, or a classifier was requested.
    """
    if classes:
        raise InputError(f"keeps no classifier, num_classes={classes}; leave num_classes out")
    own_config(name, folder)
    variables = load_trained(folder, task="bone_age").variables
    found: Tree = {
        name: jax.tree.map(_in_memory, variables[name]["backbone"]) for name in variables
    }
    return read_tree(found, like)


def _in_memory(value: Any) -> Weight:
    return Weight(tuple(value.shape), lambda: np.asarray(value))

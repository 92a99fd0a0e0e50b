"""Weights of other sources in our layout."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from boneage_jax.errors import InputError

# Keras variable -> (our collection, our parameter), by the last part of the variable's path.
_KERAS = {
    "kernel": ("params", "kernel"),
    "bias": ("params", "bias"),
    "gamma": ("params", "scale"),
    "beta": ("params", "bias"),
    "moving_mean": ("batch_stats", "mean"),
    "moving_variance": ("batch_stats", "var"),
}


def from_keras(weights: Mapping[str, np.ndarray], like: Any) -> dict[str, Any]:
    """Puts the weights of a `keras.applications` EfficientNet into our variables.

    Args:
      weights: arrays by Keras path, 'LAYER/VARIABLE', as in
        `{w.path: w.numpy() for w in model.weights}`. The weights of Keras's input
        normalisation are skipped.
      like: variables {'params', 'batch_stats'} (or their shapes) of the network to fill.

    Returns:
      Variables of the structure of `like`, float32.

    Raises:
      InputError: a weight is missing, left over, or of another shape.
    """
    found: dict[str, dict[str, dict[str, np.ndarray]]] = {"params": {}, "batch_stats": {}}
    for path, array in weights.items():
        layer, _, variable = path.rpartition("/")
        if layer.startswith("normalization"):
            continue
        if variable not in _KERAS:
            raise InputError(f"Keras weight {path!r} has no place in an EfficientNet")
        collection, name = _KERAS[variable]
        array = np.asarray(array, np.float32)
        if layer.endswith("dwconv"):  # Keras keeps [k, k, C, 1]
            array = array.swapaxes(2, 3)
        found[collection].setdefault(layer, {})[name] = array
    for collection, layers in like.items():
        for layer, variables in layers.items():
            for name, wanted in variables.items():
                got = found[collection].get(layer, {}).get(name)
                if got is None:
                    raise InputError(f"the Keras weights lack {layer}/{name}; is it this variant?")
                if got.shape != tuple(wanted.shape):
                    raise InputError(
                        f"Keras weight {layer}/{name} has shape {list(got.shape)}, the network "
                        f"needs {list(wanted.shape)}"
                    )
        extra = found[collection].keys() - layers.keys()
        if extra:
            raise InputError(f"the network has no layer for the Keras weights {sorted(extra)[:3]}")
    return found

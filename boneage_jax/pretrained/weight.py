"""A lazily read weight of a file: its shape is known before its values are read."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from boneage_jax.errors import InputError
from boneage_jax.models.efficientnet import STAGES, VARIANTS, round_filters, stage_repeats


class Weight(NamedTuple):
    """One array of a weight file.

    Attributes:
      shape: shape of the array, so that a wrong one is rejected before it is read.
      read: returns the array, of any floating dtype.
    """

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]

    def transposed(self, *axes: int) -> "Weight":
        """Returns the weight with its axes permuted."""
        shape = tuple(self.shape[axis] for axis in axes)
        return Weight(shape, lambda: self.read().transpose(axes))


# Collection ('params', 'batch_stats') -> layer -> variable, in our names and our axes.
Tree = dict[str, dict[str, dict[str, Weight]]]


def read_tree(found: Tree, like: Mapping[str, Any], origin: str = "") -> dict[str, Any]:
    """Reads the weights that a network needs.

    Args:
      found: weights of a source under our names.
      like: variables {'params', 'batch_stats'} of an EfficientNet, or their shapes.
      origin: origin of the weights for messages, e.g. 'Keras'.

    Returns:
      float32 NumPy arrays in the structure of `like`.

    Raises:
      InputError: a weight is missing, unused, of the wrong shape, not floating point, or not
        finite. The message does not name the file.
    """
    check_tree(found, like, origin)
    whose, have = _whose(origin), flatten_dict(found)
    return unflatten_dict(
        {path: _values(have[path], f"{whose} {'/'.join(path[1:])}") for path in flatten_dict(like)}
    )


def check_tree(found: Tree, like: Mapping[str, Any], origin: str = "") -> None:
    """Checks names and shapes of weights, whose values it does not read; see `read_tree`.

    Raises:
      InputError: a weight is missing, unused, or of the wrong shape.
    """
    whose = _whose(origin)
    have, need = flatten_dict(found), flatten_dict(like)
    for path, wanted in need.items():
        name, got = "/".join(path[1:]), have.get(path)
        if got is None:
            raise InputError(f"the {whose}s lack {name}{_which(found)}")
        if got.shape != tuple(wanted.shape):
            raise InputError(
                f"{whose} {name} has shape {list(got.shape)}, the network needs "
                f"{list(wanted.shape)}{_which(found)}"
            )
    extra = sorted("/".join(path[1:]) for path in have.keys() - need.keys())
    if extra:
        raise InputError(f"the network has no layer for the {whose}s {extra[:3]}{_which(found)}")


def _whose(origin: str) -> str:
    return f"{origin} weight" if origin else "weight"


def _values(weight: Weight, what: str) -> np.ndarray:
    array = weight.read()
    if array.dtype.kind != "f":
        raise InputError(f"{what} holds {array.dtype}, not floating numbers")
    with np.errstate(over="ignore"):  # an overflow gives inf, which is rejected below
        array = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(array).all():
        raise InputError(f"{what} holds values that are not finite; fetch or train it again")
    if what.endswith("/var") and array.size and array.min() < 0:
        raise InputError(f"{what} holds a negative variance; fetch or train it again")
    return array


def _which(found: Tree) -> str:
    """Returns a hint such as '; the source looks like efficientnet_b3', from its last block."""
    params = found["params"]
    blocks = [layer for layer in params if layer.endswith("_dwconv")]
    last = params.get("block7a_project_conv", {}).get("kernel")
    excites = any("_se_" in layer for layer in params)
    for name, spec in VARIANTS.items():
        if (
            len(blocks) == sum(stage_repeats(spec))
            and last is not None
            and last.shape[-1:] == (round_filters(STAGES[-1].filters, spec.width),)
            and excites != spec.lite
        ):
            return f"; the source looks like {name}"
    return "; is it this variant?"

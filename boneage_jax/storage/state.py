"""State that a training run carries from one step to the next."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

Tree = Any
_GIGA = 1_000_000_000


@flax.struct.dataclass
class TrainState:
    """State of a run; a pytree without functions, so that it can be saved as it is.

    Attributes:
      step: int32 [], number of training steps done, including those whose update was skipped.
      params: float32 tree, all parameters.
      batch_stats: float32 tree, BatchNorm means and variances.
      ema_params: exponential moving average of the trained part of `params`; an empty dict if
        switched off.
      opt_state: optax state.
      rng: uint32 [2], key of the run. It never changes: every random draw is derived from it and
        the running number of the image, so a resumed run draws the same as an uninterrupted one.
      flops_spent: uint32 [2], training FLOPs so far as (giga, rest). Two words, since a float32
        loses whole steps at 1e15 and a full run spends more than 1e16.
    """

    step: jax.Array
    params: Tree
    batch_stats: Tree
    ema_params: Tree
    opt_state: Tree
    rng: jax.Array
    flops_spent: jax.Array

    @property
    def eval_params(self) -> Tree:
        """Parameters for evaluation and prediction: the averaged ones if they are kept."""
        return merge(self.params, self.ema_params)

    @property
    def eval_variables(self) -> Tree:
        """{'params', 'batch_stats'} for evaluation and prediction."""
        return {"params": self.eval_params, "batch_stats": self.batch_stats}


def merge(whole: Tree, part: Tree) -> Tree:
    """Merges two nested dicts; leaves that both have are taken from `part`."""
    return unflatten_dict(flatten_dict(whole, keep_empty_nodes=True) | flatten_dict(part))


def select(tree: Tree, wanted: Callable[[tuple[str, ...]], bool]) -> Tree:
    """Returns the leaves of nested dicts whose path of keys is wanted; drops dicts left empty."""
    return unflatten_dict({path: x for path, x in flatten_dict(tree).items() if wanted(path)})


def add_flops(spent: jax.Array, flops: int) -> jax.Array:
    """Returns `spent` (uint32 [2], giga and rest) plus `flops`, exact up to 4e18."""
    giga, rest = divmod(flops, _GIGA)
    total = spent[1] + jnp.uint32(rest)
    carry = total >= _GIGA
    return jnp.stack(
        [
            spent[0] + jnp.uint32(giga) + carry.astype(jnp.uint32),
            jnp.where(carry, total - jnp.uint32(_GIGA), total),
        ]
    )


def flops_of(spent: jax.Array | np.ndarray) -> int:
    """Returns the exact number in a `flops_spent` array; fetches it from the device."""
    giga, rest = np.asarray(spent).tolist()
    return int(giga) * _GIGA + int(rest)


def split_flops(flops: int) -> jax.Array:
    """Returns the `flops_spent` array (uint32 [2], giga and rest) of a number, up to 4e18."""
    return jnp.asarray(divmod(flops, _GIGA), jnp.uint32)

"""All that a training run carries from one step to the next."""

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
    """The state of a run; a pytree without any function in it, so that it can be saved as it is.

    Attributes:
      step: int32 [], the number of optimizer updates done.
      params: float32 tree, the weights that are trained.
      batch_stats: float32 tree, BatchNorm means and variances.
      ema_params: exponential moving average of those `params` that are trained; an empty dict when
        it is switched off.
      opt_state: optax state.
      rng: uint32 [2], the key of the run. It never changes: every random draw is derived from it
        and the running number of the image, so a resumed run draws what it would have drawn.
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
        """The weights to evaluate and predict with: averaged ones where they are kept."""
        return merge(self.params, self.ema_params)

    @property
    def eval_variables(self) -> Tree:
        """{'params', 'batch_stats'} to evaluate and predict with."""
        return {"params": self.eval_params, "batch_stats": self.batch_stats}


def merge(whole: Tree, part: Tree) -> Tree:
    """`whole` and `part`, nested dicts, in one; leaves that both have are taken from `part`."""
    return unflatten_dict(flatten_dict(whole, keep_empty_nodes=True) | flatten_dict(part))


def select(tree: Tree, wanted: Callable[[tuple[str, ...]], bool]) -> Tree:
    """Those leaves of nested dicts whose path of keys is wanted; dicts left empty are dropped."""
    return unflatten_dict({path: x for path, x in flatten_dict(tree).items() if wanted(path)})


def add_flops(spent: jax.Array, flops: int) -> jax.Array:
    """`spent` (uint32 [2], giga and rest) plus `flops`, exact up to 4e18."""
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
    """The exact number held by a `flops_spent` array (this fetches it from the device)."""
    giga, rest = np.asarray(spent).tolist()
    return int(giga) * _GIGA + int(rest)


def split_flops(flops: int) -> jax.Array:
    """Returns `flops_spent` (uint32 [2], giga and rest) that holds a number, up to 4e18."""
    return jnp.asarray(divmod(flops, _GIGA), jnp.uint32)

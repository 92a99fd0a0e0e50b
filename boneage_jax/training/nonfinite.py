"""Steps with a non-finite loss or gradient: skipped on the device, handled on the host.

The train step checks its own results and leaves the state unchanged if they are not finite, so a
bad value never enters the state, whatever the policy. `config.nonfinite` says what the host does
about it. The host reads the counts with the metrics of a log line, one line late, so it waits for
no step.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from clu.metrics import Collection
from ml_collections import ConfigDict

from boneage_jax.errors import InputError
from boneage_jax.training.adam import AcceptedState, join_small

_REMEDY = "lower config.optimizer.learning_rate or .clip_norm, or look at the data of those steps"


def all_finite(*trees: Any) -> jax.Array:
    """Returns bool [], whether all values of the trees are finite.

    Those of more than one axis must be small enough to be summed, too.
    """
    leaves = [leaf for leaf in jax.tree.leaves(trees) if jnp.issubdtype(leaf, jnp.inexact)]
    values = [leaf if leaf.ndim == 1 else leaf.sum(keepdims=True) for leaf in join_small(leaves)]
    # Of each value, not of sums of vectors: XLA turns a sum of joined vectors into a sum for each.
    return jnp.stack([jnp.isfinite(value).all() for value in values] or [jnp.ones((), bool)]).all()


def is_finite(tree: Any) -> bool:
    """Returns whether all numbers of a state are finite, read on the host.

    A jitted function of its thousand arrays takes longer to compile than most train steps: 14 s of
    EfficientNet-B4's on two cores.

    Args:
      tree: arrays; with several devices or processes the first copy on this host is read.
    """
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return all(np.isfinite(np.asarray(leaf.addressable_data(0))).all() for leaf in leaves)


def accept(good: jax.Array, new: Any, old: Any) -> Any:
    """Returns `new` if `good` (bool []), else `old`, leaf by leaf; an `AcceptedState` as it is.

    A select, not a branch: it fuses into the loop that writes each leaf, while a branch would be a
    separate program.
    """

    def choose(a: Any, b: Any) -> Any:
        return a if isinstance(a, AcceptedState) else jnp.where(good, a, b)

    return jax.tree.map(choose, new, old, is_leaf=lambda node: isinstance(node, AcceptedState))


@flax.struct.dataclass
class Watched:
    """Metrics of the steps since the last log line, with counts of skipped steps.

    Attributes:
      metrics: merged over the finite steps.
      total: int32 [], steps skipped so far.
      streak: int32 [], length of the current streak of skipped steps.
      longest: int32 [], length of the longest streak since the log line, counted from its first
        step.
      first: int32 [], the first step skipped since the log line (updates done after it), 0 if none.
    """

    metrics: Collection
    total: jax.Array
    streak: jax.Array
    longest: jax.Array
    first: jax.Array

    @classmethod
    def begin(cls, metrics: Collection, total: int = 0) -> "Watched":
        """Returns empty metrics and counts, with `total` steps skipped before this start."""
        zero = jnp.zeros((), jnp.int32)
        return cls(metrics, jnp.asarray(total, jnp.int32), zero, zero, zero)

    def emptied(self, like: "Watched") -> "Watched":
        """Returns `like` with the current `total` and `streak`; computes nothing."""
        return dataclasses.replace(like, total=self.total, streak=self.streak)


def record(before: Any, new: Collection, good: jax.Array, step: jax.Array) -> Any:
    """Adds the metrics of one more step, if it was good.

    Args:
      before: a collection or `Watched` of the earlier steps.
      new: metrics of this step; a collection of averages, for which zeros mean empty.
      good: bool [], whether the step was finite.
      step: int32 [], updates done after this step.

    Returns:
      The updated metrics, of the type of `before`.
    """
    kept = before.metrics if isinstance(before, Watched) else before
    new = jax.tree.map(  # keeps the dtype, also under JAX_ENABLE_X64
        lambda x, old: jnp.where(good, x, jnp.zeros_like(x)).astype(old.dtype), new, kept
    )
    if not isinstance(before, Watched):
        return before.merge(new)
    bad = 1 - good.astype(jnp.int32)
    streak = (before.streak + bad) * bad
    return Watched(
        metrics=before.metrics.merge(new),
        total=before.total + bad,
        streak=streak,
        longest=jnp.maximum(before.longest, streak),
        first=jnp.where((bad > 0) & (before.first == 0), step.astype(jnp.int32), before.first),
    )


class Guard:
    """Applies `config.nonfinite` to skipped steps.

    Args:
      config: config of the run; `nonfinite` and `nonfinite_limit` are read.
      total: steps skipped before this start.
      rollbacks: rollbacks before this start.
    """

    def __init__(self, config: ConfigDict, total: int = 0, rollbacks: int = 0):
        self._policy, self._limit = config.nonfinite, config.nonfinite_limit
        self.total, self.rollbacks = total, rollbacks

    @property
    def skipped(self) -> int:
        """Number of skipped updates (`step` minus the optimizer's count)."""
        return self.total if self._policy == "skip" else 0

    def row(self) -> dict[str, float]:
        """Returns the counts for metrics.jsonl; {} while all steps are finite."""
        row = {"nonfinite_steps": self.total, "rollbacks": self.rollbacks}
        return {key: float(value) for key, value in row.items() if value}

    def judge(self, step: int, total: int, longest: int, first: int) -> bool:
        """Returns whether the run must roll back to its last checkpoint.

        Args:
          step: step up to which the counts are known.
          total, longest, first: see `Watched`.

        Raises:
          InputError: the run must end; the message is one line with the step and the remedy.
        """
        new, self.total = total - self.total, total
        if not new:
            return False
        where = f"the loss or a gradient was not finite at step {first}"
        if self._policy == "stop":
            raise InputError(
                f"{where}; {_REMEDY}; or give the same command with --config.nonfinite=skip (or "
                "rollback), which goes on from the last checkpoint"
            )
        if self._policy == "skip":
            if longest >= self._limit:
                raise InputError(
                    f"the loss or a gradient was not finite in {longest} steps in a row, "
                    f"up to step {step} (config.nonfinite_limit={self._limit}); none of them "
                    f"changed the network; {_REMEDY}"
                )
            return False
        self.count_rollback(where)
        return True

    def judge_state(self, step: int) -> bool:
        """Handles a state that holds non-finite values and must not be saved.

        Returns:
          True: the run must roll back.

        Raises:
          InputError: see `judge`.
        """
        where = f"the network of step {step} holds numbers that are not finite"
        if self._policy != "rollback":
            raise InputError(f"{where}; it was not saved, earlier checkpoints are whole; {_REMEDY}")
        self.count_rollback(where)
        return True

    def count_rollback(self, where: str) -> None:
        """Counts one more rollback.

        Raises:
          InputError: `config.nonfinite_limit` is reached.
        """
        if self.rollbacks >= self._limit:
            raise InputError(
                f"{where}, after {self.rollbacks} roll-backs (config.nonfinite_limit="
                f"{self._limit}); the last checkpoint is whole; {_REMEDY}"
            )
        self.rollbacks += 1

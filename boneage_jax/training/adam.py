"""Adam's moments updated in place, and gradient clipping without a copy of the gradients.

The same numbers as `optax.scale_by_adam` and `optax.clip_by_global_norm`, to rounding. There the
quotient comes from moments that a later choice may still take back, where a step was not finite.
XLA's CPU compiler then computes it from the old moments, which it must keep beside the new: it
copies all parameters, moments and averages at the start of each step, and writes quotients and
clipped gradients to memory as well. Here the choice comes first.
"""

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax

Array = jax.Array


class AcceptedState(optax.ScaleByAdamState):
    """Moments of a step; already the old ones where the step was not `good`."""


def scale_by_adam(b1: float, b2: float, eps: float = 1e-8) -> optax.GradientTransformationExtraArgs:
    """Builds `optax.scale_by_adam`, arranged for one pass over the memory of each moment.

    Its `update` takes `good`, bool [] (default: true): without it moments and count stay as they
    are, and the updates mean nothing.

    Args:
      b1, b2: decays of the first and the second moment.
      eps: added to the root of the second moment.
    """
    plain = optax.scale_by_adam(b1=b1, b2=b2, eps=eps)

    def init(params: Any) -> AcceptedState:
        return AcceptedState(*plain.init(params))

    def update(
        updates: Any,
        state: AcceptedState,
        params: Any = None,
        *,
        good: Array | bool = True,
        **others: Any,
    ) -> tuple[Any, AcceptedState]:
        leaves, tree = jax.tree.flatten(updates)
        old = zip(leaves, jax.tree.leaves(state.mu), jax.tree.leaves(state.nu), strict=True)
        new = [_moments(good, *each, b1=b1, b2=b2) for each in old]
        count = optax.safe_increment(state.count)
        first, second = (1 - jnp.asarray(b, jnp.float32) ** count for b in (b1, b2))
        steps = [_quotient(mu, first, nu, second, eps=eps) for mu, nu in new]
        return jax.tree.unflatten(tree, steps), AcceptedState(
            jnp.where(good, count, state.count),
            jax.tree.unflatten(tree, [mu for mu, _ in new]),
            jax.tree.unflatten(tree, [nu for _, nu in new]),
        )

    return optax.GradientTransformationExtraArgs(init, update)


# Jitted, and so traced once for each shape, not for each of hundreds of parameters.
@functools.partial(jax.jit, static_argnames=("b1", "b2"), inline=True)
def _moments(
    good: Array | bool, g: Array, mu: Array, nu: Array, *, b1: float, b2: float
) -> tuple[Array, Array]:
    first, second = (1 - b1) * g + b1 * mu, (1 - b2) * jnp.square(g) + b2 * nu
    return jnp.where(good, first, mu), jnp.where(good, second, nu)


@functools.partial(jax.jit, static_argnames="eps", inline=True)
def _quotient(mu: Array, first: Array, nu: Array, second: Array, *, eps: float) -> Array:
    return (mu / first) / (jnp.sqrt(nu / second) + eps)


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Builds `optax.clip_by_global_norm` as a product with one factor, which XLA fuses."""

    def update(updates: Any, params: Any = None) -> Any:
        norm = global_norm(updates)
        factor = jnp.where(norm < max_norm, 1.0, max_norm / norm)
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), updates)

    return optax.stateless(update)


def global_norm(tree: Any) -> Array:
    """Returns the Euclidean norm of all leaves together; vectors are joined first."""
    # Products of vectors: for the sum of squares XLA's CPU compiler writes the squares to memory.
    squares = [jnp.vdot(leaf, leaf) for leaf in join_small(jax.tree.leaves(tree))]
    return jnp.sqrt(jnp.stack(squares).sum() if squares else jnp.zeros(()))


def join_small(leaves: Iterable[Array]) -> list[Array]:
    """Joins the numbers and vectors of each dtype to one vector; arrays of more axes stay.

    A network has hundreds of them, and each would be a kernel of its own to compile and to start.
    """
    small: dict[Any, list[Array]] = {}
    large = []
    for leaf in leaves:
        if jnp.ndim(leaf) < 2:
            small.setdefault(jnp.result_type(leaf), []).append(jnp.ravel(leaf))
        else:
            large.append(leaf)
    return [jnp.concatenate(parts) for parts in small.values()] + large

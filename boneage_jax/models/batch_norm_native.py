"""Moments and gradient of batch normalisation by compiled code, see native_code/batch_norm.cc.

XLA's CPU compiler reads the whole array once for each sum, and computes the activation's derivative
each time; here one pass over memory yields all.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from boneage_jax.models.native import call

Activation = Callable[[jax.Array], jax.Array] | None
CODES: dict[Any, int] = {None: 0, nn.relu: 1, nn.relu6: 2, nn.swish: 3}


def knows(act: Activation) -> bool:
    """Returns whether there is code for the gradient of an activation."""
    return act in CODES


@jax.custom_vjp
def native_moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the means of `x` and of its square, float32 [C] each, of float32 [..., C]."""
    channels = x.shape[-1]
    sums = call("batch_norm_moments", (2, channels), x) / (x.size // channels)
    return sums[0], sums[1]


def _moments_fwd(x: jax.Array) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    return native_moments(x), x


def _moments_bwd(x: jax.Array, grads: tuple[jax.Array, jax.Array]) -> tuple[jax.Array]:
    count = x.size // x.shape[-1]
    by_mean, by_square = (grad / count for grad in grads)
    return (by_mean + 2 * by_square * x,)


native_moments.defvjp(_moments_fwd, _moments_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def native_scale_and_act(x: jax.Array, a: jax.Array, b: jax.Array, act: Activation) -> jax.Array:
    """Computes act(x * a + b) of float32 [..., C]; keeps `x` alone for the gradient.

    Args:
      x: [..., C].
      a, b: [C].
      act: an activation that `knows` knows.
    """
    return x * a + b if act is None else act(x * a + b)


def _scale_fwd(
    x: jax.Array, a: jax.Array, b: jax.Array, act: Activation
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return native_scale_and_act(x, a, b, act), (x, a, b)


def _scale_bwd(
    act: Activation, saved: tuple[jax.Array, ...], grad: jax.Array
) -> tuple[jax.Array, ...]:
    x, a, b = saved
    return gradient(x, a, b, grad, act)


native_scale_and_act.defvjp(_scale_fwd, _scale_bwd)


def gradient(
    x: jax.Array, a: jax.Array, b: jax.Array, grad: jax.Array, act: Activation
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the gradients of act(x * a + b) by x, a and b.

    Args:
      x, a, b, act: see `native_scale_and_act`.
      grad: by the result, [..., C].
    """
    shapes = [x.shape, (2, x.shape[-1])]
    by_x, sums = call("batch_norm_gradient", shapes, x, grad, a, b, activation=CODES[act])
    return by_x, sums[0], sums[1]

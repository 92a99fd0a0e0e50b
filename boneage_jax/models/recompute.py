"""Computes a part of a network again in the backward pass, in place of keeping what is inside it.

`flax.linen.remat` does so on GPUs and TPUs. On CPUs XLA drops the barriers that it relies on and
shares the two computations, so that nothing is saved. There compiled code makes the second one wait
for the gradient that needs it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.extend as jex
import jax.numpy as jnp
from flax import linen as nn
from flax.core import lift

from boneage_jax.models import native


def recomputed(method: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a method of a module, whose arguments are arrays or None, so that it is computed twice.

    Gradients are those of the method itself, but for rounding; with compiled code only those of the
    first order, in reverse mode. On a CPU without it (no compiler, several devices) the FLOPs of
    both computations are counted, but XLA shares them and saves no memory.

    Args:
      method: a function of a module, an array and further arrays; the first array has a gradient.
    """
    if not native.is_loaded():
        return nn.remat(method)
    return nn.transforms.lift_transform(_lifted, method)


def _lifted(function: Callable[..., Any]) -> Callable[..., Any]:
    """Lifts `_twice` to functions of a scope of Flax, all of whose variables are passed."""

    def inner(scope_of: Any, variables_of: Any, variables: Any, keys: Any, *args: Any) -> Any:
        @_twice
        def pure(args: tuple[Any, ...], variables: Any, keys: Any) -> Any:
            scope = scope_of(variables, keys)
            return function(scope, *args), variables_of(scope)

        return pure(args, variables, keys)

    return lift.pack(inner, (True,), (True,), (True,), name="recomputed")


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Varied:
    """Which of the arrays of a call a gradient is asked for."""

    flags: tuple[bool, ...]


def _twice(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a function of trees of arrays, so that only these are kept for its gradient."""

    def call(*args: Any) -> Any:
        arrays, tree = jax.tree.flatten(args)
        # Traced once: a module that draws random numbers would draw others the second time.
        traced, like = jax.make_jaxpr(
            lambda *arrays: function(*jax.tree.unflatten(tree, arrays)), return_shape=True
        )(*arrays)
        replay = jex.core.jaxpr_as_fun(traced)
        flat = jax.custom_vjp(replay)

        def forward(*given: Any) -> tuple[Any, Any]:
            arrays = [each.value for each in given]
            exact = (jnp.issubdtype(each.dtype, jnp.inexact) for each in arrays)
            varied = (each.perturbed and real for each, real in zip(given, exact, strict=True))
            return replay(*arrays), (arrays, _Varied(tuple(varied)))

        def backward(kept: tuple[list[jax.Array], _Varied], grads: Any) -> tuple[Any, ...]:
            arrays, varied = kept
            places = [place for place, flag in enumerate(varied.flags) if flag]
            grads = [_array(grad) for grad in grads]
            arrays[0] = _after(arrays[0], grads[0])

            def of_varied(*some: jax.Array) -> Any:
                every = list(arrays)
                for place, array in zip(places, some, strict=True):
                    every[place] = array
                return replay(*every)

            found = jax.vjp(of_varied, *(arrays[place] for place in places))[1](grads)
            by_place = dict(zip(places, found, strict=True))
            return tuple(by_place.get(place) for place in range(len(arrays)))

        flat.defvjp(forward, backward, symbolic_zeros=True)
        return jax.tree.unflatten(jax.tree.structure(like), flat(*arrays))

    return call


def _array(grad: Any) -> Any:
    zero = isinstance(grad, jax.custom_derivatives.SymbolicZero)
    return jnp.zeros(grad.shape, grad.dtype) if zero else grad


def _after(value: jax.Array, other: jax.Array) -> jax.Array:
    """Returns `value`, once `other` is there."""
    like = jax.ShapeDtypeStruct(value.shape, value.dtype)
    call = jax.ffi.ffi_call(
        native.PREFIX + "after", like, input_output_aliases={0: 0}, vmap_method="sequential"
    )
    result: jax.Array = call(value, other)
    return result

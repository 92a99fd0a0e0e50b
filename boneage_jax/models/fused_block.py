"""Parts of an inverted bottleneck whose gradients read the expanded tensor less often, for TPUs.

A train step of EfficientNet on a TPU is bound by main memory, and most of what it moves are passes
over the expanded tensors of its blocks, six times as wide as what lies between blocks. XLA computes
elementwise work while it reads or writes an operand of a convolution, but it follows the order of
the derivative rules. Those here take the gradient of each part in the order that needs the fewest
passes, at the cost of some more products: 16 instead of 21 passes for a block.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
Activation = Callable[[Array], Array]

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def pointwise(x: Array, kernel: Array, dtype: Any = None) -> Array:
    """Multiplies [B, H, W, C] by [1, 1, C, F], as a convolution: the compiler picks the layout."""
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "VALID", dimension_numbers=_LAYOUT, preferred_element_type=dtype
    )


def _by_kernel(x: Array, grad: Array, dtype: Any = None) -> Array:
    """Returns the gradient of `pointwise` by its kernel, by default in the dtype of the arrays.

    In that dtype it is reduced over devices, which halves what they send in bfloat16.
    """
    return lax.conv_general_dilated(
        x,
        grad,
        (1, 1),
        "VALID",
        dimension_numbers=("CHWN", "IHWO", "HWNC"),
        preferred_element_type=dtype,
    )


@jax.custom_vjp
def pointwise_with_moments(x: Array, kernel: Array) -> tuple[Array, Array, Array]:
    """Computes a pointwise convolution, and the means of its result and of its square.

    The gradient of the moments adds to each value of the result a constant and a multiple of the
    value itself, for each channel. Both are linear in `x`, so their share of the gradients is taken
    from the narrow `x`, and the wide result is not read for it.

    Args:
      x: [B, H, W, C].
      kernel: [1, 1, C, F], of the dtype of `x`.

    Returns:
      [B, H, W, F] of the dtype of `x`, and the two means, float32 [F].
    """
    out = pointwise(x, kernel)
    exact = out.astype(_exact(x))
    return out, exact.mean((0, 1, 2)), jnp.square(exact).mean((0, 1, 2))


def _moments_fwd(x: Array, kernel: Array) -> tuple[tuple[Array, Array, Array], tuple[Array, Array]]:
    return pointwise_with_moments(x, kernel), (x, kernel)


def _moments_bwd(
    saved: tuple[Array, Array], grads: tuple[Array, Array, Array]
) -> tuple[Array, Array]:
    x, kernel = saved
    grad, by_mean, by_square = grads
    exact = _exact(x)
    count = x[..., 0].size
    by_mean, by_square = by_mean / count, 2 * by_square / count
    weights = kernel[0, 0].astype(exact)
    # By x: grad W' + by_mean W' + x W diag(by_square) W'.
    mixed = (weights * by_square) @ weights.T
    by_x = pointwise(grad, kernel.swapaxes(2, 3), exact)
    # In the dtype of `x`: what cannot be computed within the other convolution is stored.
    by_x += pointwise(x, mixed[None, None].astype(x.dtype)) + weights @ by_mean
    # By W: x' grad + sum(x) by_mean + x' x W diag(by_square).
    by_kernel = _by_kernel(x, grad).astype(exact)
    sums = x.astype(exact).sum((0, 1, 2))
    moments = sums[:, None] * by_mean + (_by_kernel(x, x, exact)[0, 0] @ weights) * by_square
    by_kernel = (by_kernel + moments).astype(kernel.dtype)
    return by_x.astype(x.dtype), by_kernel


pointwise_with_moments.defvjp(_moments_fwd, _moments_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def pooled_act(x: Array, a: Array, b: Array, act: Activation) -> Array:
    """Computes the mean over space of act(x * a + b).

    The sums that the gradients of `a` and `b` need are taken in the forward pass, while `x` is read
    for the mean.

    Args:
      x: [B, H, W, C].
      a, b: float32 [C].
      act: activation, applied to float32 values.

    Returns:
      float32 [B, C].
    """
    return act(x * a + b).mean((1, 2))


def _pooled_fwd(x: Array, a: Array, b: Array, act: Activation) -> tuple[Array, tuple[Array, ...]]:
    y, slope = _with_slope(x * a + b, act)
    sums = (slope * x).mean((1, 2)), slope.mean((1, 2))  # by a and by b, of each image
    return y.mean((1, 2)), (x, a, b, *sums)


def _pooled_bwd(act: Activation, saved: tuple[Array, ...], grad: Array) -> tuple[Array, ...]:
    x, a, b, of_a, of_b = saved
    _, slope = _with_slope(x * a + b, act)
    share = (grad / (x.shape[1] * x.shape[2]))[:, None, None]
    return (slope * share * a).astype(x.dtype), (grad * of_a).sum(0), (grad * of_b).sum(0)


pooled_act.defvjp(_pooled_fwd, _pooled_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def gated_product(
    x: Array, a: Array, b: Array, gate: Array, kernel: Array, act: Activation
) -> Array:
    """Computes act(x * a + b) * gate times the matrix of a pointwise convolution.

    The gradient of the gated values is a product of two small operands. It is computed twice, once
    for all sums and once for the gradient of `x`, and never stored.

    Args:
      x: [B, H, W, C].
      a, b: float32 [C].
      gate: [B, C].
      kernel: [1, 1, C, F], of the dtype of `x`.
      act: activation, applied to float32 values.

    Returns:
      [B, H, W, F] of the dtype of `x`.
    """
    gated = act(x * a + b) * gate[:, None, None]
    return pointwise(gated.astype(x.dtype), kernel)


def _gated_fwd(
    x: Array, a: Array, b: Array, gate: Array, kernel: Array, act: Activation
) -> tuple[Array, tuple[Array, ...]]:
    return gated_product(x, a, b, gate, kernel, act), (x, a, b, gate, kernel)


def _gated_bwd(act: Activation, saved: tuple[Array, ...], grad: Array) -> tuple[Array, ...]:
    # Each barrier keeps the compiler from storing what another pass computes too.
    x, a, b, gate, kernel = lax.optimization_barrier(saved)
    gated = (act(x * a + b) * gate[:, None, None]).astype(x.dtype)
    by_kernel = _by_kernel(gated, grad)

    x, grad = lax.optimization_barrier((x, grad))
    y, slope = _with_slope(x * a + b, act)
    by_gated = pointwise(grad, kernel.swapaxes(2, 3), _exact(x))
    by_gate = (by_gated * y).sum((1, 2))  # [B, C], like the next two
    of_a, of_b = ((by_gated * slope * factor).sum((1, 2)) for factor in (x, 1.0))

    x, grad = lax.optimization_barrier((x, grad))
    _, slope = _with_slope(x * a + b, act)
    by_gated = pointwise(grad, kernel.swapaxes(2, 3), _exact(x))
    by_x = (by_gated * slope * (gate[:, None, None] * a)).astype(x.dtype)
    gate = gate.astype(_exact(x))
    return (
        by_x,
        (gate * of_a).sum(0),
        (gate * of_b).sum(0),
        by_gate.astype(saved[3].dtype),
        by_kernel.astype(kernel.dtype),
    )


gated_product.defvjp(_gated_fwd, _gated_bwd)


def _exact(x: Array) -> Any:
    """Returns the dtype of sums: float32 for bfloat16."""
    return jnp.promote_types(x.dtype, jnp.float32)


def _with_slope(z: Array, act: Activation) -> tuple[Array, Array]:
    """Returns an activation and its derivative at each value."""
    y, pull = jax.vjp(act, z)
    (slope,) = pull(jnp.ones_like(z))
    return y, slope

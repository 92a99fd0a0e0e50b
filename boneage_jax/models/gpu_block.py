"""Parts of an inverted bottleneck whose gradients read the expanded tensor less often, for GPUs.

A train step of EfficientNet on a GPU is bound by main memory. Left alone, XLA stores derivatives of
the activations in float32, since several sums read them. Here each gradient is computed in two
passes, one for all of its sums and one for the gradient of the input, and nothing is stored between
them. Convolutions and matrix products are calls of libraries, with which nothing fuses.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from boneage_jax.models.triton_sums import pixel_sums

Array = jax.Array
Activation = Callable[[Array], Array]


@jax.custom_vjp
def pointwise(x: Array, kernel: Array) -> Array:
    """Multiplies [B, H, W, C] by [1, 1, C, F], as a product of two matrices.

    The kernel's gradient, a product of two long and narrow matrices, is taken in groups of pixels,
    so that all of the GPU computes. XLA would cut it too, but copy both matrices to pad them.
    """
    return _product(x, kernel)


def _product(x: Array, kernel: Array) -> Array:
    flat = x.reshape(-1, x.shape[-1]) @ kernel[0, 0]
    return flat.reshape(*x.shape[:-1], kernel.shape[-1])


def _pointwise_fwd(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _product(x, kernel), (x, kernel)


def _pointwise_bwd(saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, kernel = saved
    inputs, outputs = kernel.shape[2:]
    groups = _groups(x[..., 0].size, inputs, outputs)
    parts = jnp.einsum(
        "gpc,gpf->gcf",
        x.reshape(groups, -1, inputs),
        grad.reshape(groups, -1, outputs),
        preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
    )
    by_kernel = parts.sum(0)[None, None].astype(kernel.dtype)
    return _product(grad, kernel.swapaxes(2, 3)), by_kernel


pointwise.defvjp(_pointwise_fwd, _pointwise_bwd)


def _groups(pixels: int, inputs: int, outputs: int) -> int:
    """Returns how many groups: their products may take a sixteenth of what the matrices take."""
    most = min(512, pixels * (inputs + outputs) // (16 * inputs * outputs))
    return max((n for n in range(1, most + 1) if pixels % n == 0), default=1)


@jax.custom_vjp
def moments(x: Array) -> tuple[Array, Array]:
    """Computes the means of [B, H, W, C] and of its square, float32 [C]."""
    count = x[..., 0].size
    mean, square = pixel_sums(_and_square, (x,)) / count
    return mean, square


def _moments_fwd(x: Array) -> tuple[tuple[Array, Array], Array]:
    return moments(x), x


def _moments_bwd(x: Array, grads: tuple[Array, Array]) -> tuple[Array]:
    by_mean, by_square = (grad / x[..., 0].size for grad in grads)
    return ((by_mean + 2 * by_square * x).astype(x.dtype),)


moments.defvjp(_moments_fwd, _moments_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def scale_and_act(x: Array, a: Array, b: Array, act: Activation | None) -> Array:
    """Computes act(x * a + b) of [B, H, W, C] and float32 [C], in the dtype of `x`."""
    z = x * a + b
    return (z if act is None else act(z)).astype(x.dtype)


def _act_fwd(
    x: Array, a: Array, b: Array, act: Activation | None
) -> tuple[Array, tuple[Array, ...]]:
    return scale_and_act(x, a, b, act), (x, a, b)


def _act_bwd(act: Activation | None, saved: tuple[Array, ...], grad: Array) -> tuple[Array, ...]:
    x, a, b = saved
    by_a, by_b = pixel_sums(_by_scale(act), (x, grad), (a, b))
    by_x = grad * _slope(x * a + b, act) * a
    return by_x.astype(x.dtype), by_a.astype(a.dtype), by_b.astype(b.dtype)


scale_and_act.defvjp(_act_fwd, _act_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def pooled_act(x: Array, a: Array, b: Array, act: Activation) -> Array:
    """Computes the mean over space of act(x * a + b), float32 [B, C].

    The sums that the gradients of `a` and `b` need are taken while `x` is read for the mean.
    """
    (total,) = pixel_sums(_activated(act), (x,), (a, b), True)
    return total / (x.shape[1] * x.shape[2])


def _pooled_fwd(x: Array, a: Array, b: Array, act: Activation) -> tuple[Array, tuple[Array, ...]]:
    sums = pixel_sums(_activated_and_slopes(act), (x,), (a, b), True)
    mean, by_a, by_b = sums / (x.shape[1] * x.shape[2])
    return mean, (x, a, b, by_a, by_b)


def _pooled_bwd(act: Activation, saved: tuple[Array, ...], grad: Array) -> tuple[Array, ...]:
    x, a, b, by_a, by_b = saved
    share = (grad / (x.shape[1] * x.shape[2]))[:, None, None]
    by_x = _slope(x * a + b, act) * share * a
    return by_x.astype(x.dtype), (grad * by_a).sum(0), (grad * by_b).sum(0)


pooled_act.defvjp(_pooled_fwd, _pooled_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def gated_act(x: Array, a: Array, b: Array, gate: Array, act: Activation) -> Array:
    """Computes act(x * a + b) * gate of [B, H, W, C], float32 [C] and gate [B, C]."""
    return (act(x * a + b) * gate[:, None, None]).astype(x.dtype)


def _gated_fwd(
    x: Array, a: Array, b: Array, gate: Array, act: Activation
) -> tuple[Array, tuple[Array, ...]]:
    return gated_act(x, a, b, gate, act), (x, a, b, gate)


def _gated_bwd(act: Activation, saved: tuple[Array, ...], grad: Array) -> tuple[Array, ...]:
    x, a, b, gate = saved
    by_gate, by_a, by_b = pixel_sums(_by_gate_and_scale(act), (x, grad), (a, b), True)
    by_x = grad * _slope(x * a + b, act) * (gate[:, None, None] * a)
    return (
        by_x.astype(x.dtype),
        (gate * by_a).sum(0).astype(a.dtype),
        (gate * by_b).sum(0).astype(b.dtype),
        by_gate.astype(gate.dtype),
    )


gated_act.defvjp(_gated_fwd, _gated_bwd)


def gated_product(
    x: Array, a: Array, b: Array, gate: Array, kernel: Array, act: Activation
) -> Array:
    """Computes `gated_act` times the matrix of a pointwise convolution; [B, H, W, F]."""
    return pointwise(gated_act(x, a, b, gate, act), kernel)


# What `pixel_sums` sums, one function per activation, so that it is traced once for each shape.


def _and_square(x: Array) -> tuple[Array, Array]:
    return x, x * x


@functools.cache
def _by_scale(act: Activation | None) -> Callable[..., tuple[Array, ...]]:
    def parts(x: Array, grad: Array, a: Array, b: Array) -> tuple[Array, Array]:
        by_z = grad * _slope(x * a + b, act)
        return by_z * x, by_z

    return parts


@functools.cache
def _activated(act: Activation) -> Callable[..., tuple[Array, ...]]:
    return lambda x, a, b: (act(x * a + b),)


@functools.cache
def _activated_and_slopes(act: Activation) -> Callable[..., tuple[Array, ...]]:
    def parts(x: Array, a: Array, b: Array) -> tuple[Array, Array, Array]:
        z = x * a + b
        slope = _slope(z, act)
        return act(z), slope * x, slope

    return parts


@functools.cache
def _by_gate_and_scale(act: Activation) -> Callable[..., tuple[Array, ...]]:
    def parts(x: Array, grad: Array, a: Array, b: Array) -> tuple[Array, Array, Array]:
        z = x * a + b
        by_z = grad * _slope(z, act)
        return grad * act(z), by_z * x, by_z

    return parts


def _slope(z: Array, act: Activation | None) -> Array:
    """Returns the derivative of an activation at each value."""
    if act is None:
        return jnp.ones_like(z)
    _, pull = jax.vjp(act, z)
    (slope,) = pull(jnp.ones_like(z))
    return slope

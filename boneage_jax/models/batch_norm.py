"""Batch normalisation with its activation, arranged for little memory traffic."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from boneage_jax.models.batch_norm_native import knows, native_moments, native_scale_and_act
from boneage_jax.models.gpu_block import moments as gpu_moments
from boneage_jax.models.gpu_block import scale_and_act as gpu_scale_and_act
from boneage_jax.models.native import is_enabled

Array = jax.Array


class BatchNorm(nn.Module):
    """Normalises over batch and space, then applies the activation.

    Same function, parameters and statistics as `flax.linen.BatchNorm` followed by `act`; only the
    arithmetic is arranged differently, since these layers are bound by memory traffic. One
    multiply-add per value, x * a + b with a, b [C], so the gradient needs only `x`, not the centred
    `x` as well; and the activation is recomputed in the backward pass, not stored. Statistics and
    arithmetic are float32 whatever the dtype of `x`.

    Attributes:
      use_running_average: normalise by the running statistics and do not update them.
      momentum: weight of the old running statistics in an update.
      epsilon: added to the variance.
      axis_name: device axis over which batch statistics are averaged, or None.
      act: activation of the normalised values, or None.
      scale_init: initialiser of the scale.
      recompute: recompute the activation in the backward pass. XLA's TPU compiler does so by itself
        if it pays, and fuses more when left alone.
      fold: return (a, b) instead of normalised values, for an operation that applies them itself.
      triton: take sums by Triton kernels, see `boneage_jax.models.gpu_block`.
    """

    use_running_average: bool
    momentum: float = 0.99
    epsilon: float = 1e-3
    axis_name: str | None = None
    act: Callable[[Array], Array] | None = None
    scale_init: Callable[..., Array] = nn.initializers.ones
    recompute: bool = True
    fold: bool = False
    triton: bool = False

    @nn.compact
    def __call__(self, x: Array, *moments: Array) -> Any:
        """Normalises [B, H, W, C], keeping shape and dtype.

        Takes the means of `x` and of its square, float32 [C], if they are known. With `fold`,
        returns the two arrays a and b, float32 [C], instead.
        """
        channels = (x.shape[-1],)
        moving_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        moving_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        scale = self.param("scale", self.scale_init, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        native = not self.use_running_average and is_enabled(x.dtype) and knows(self.act)
        if self.use_running_average:
            mean, var = moving_mean.value, moving_var.value
        else:
            axis_name = None if self.is_initializing() else self.axis_name
            local = moments or (gpu_moments(x) if self.triton else _local(x, native))
            mean, var = _moments(local, axis_name)
            if not self.is_initializing():
                for moving, new in ((moving_mean, mean), (moving_var, var)):
                    moving.value = _moved(moving.value, new, momentum=self.momentum)
        a, b = _factors(scale, bias, mean, var, epsilon=self.epsilon)
        if self.fold:
            return a, b
        if self.triton:
            return gpu_scale_and_act(x, a, b, self.act)
        if native:
            return native_scale_and_act(x, a, b, self.act)
        return _scale_and_act(x, a, b, self.act, self.recompute)


# Jitted, and so traced once for each number of channels, not for each of a hundred layers.
@functools.partial(jax.jit, static_argnames="momentum", inline=True)
def _moved(old: Array, new: Array, *, momentum: float) -> Array:
    return momentum * old + (1 - momentum) * new


@functools.partial(jax.jit, static_argnames="epsilon", inline=True)
def _factors(
    scale: Array, bias: Array, mean: Array, var: Array, *, epsilon: float
) -> tuple[Array, Array]:
    """Returns a and b, with which the normalised values are x * a + b."""
    a = scale * jax.lax.rsqrt(var + epsilon)
    return a, bias - mean * a


def _local(x: Array, native: bool) -> tuple[Array, ...]:
    """Returns the means of `x` and of its square, float32 [C], over the values of this device."""
    exact = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    axes = tuple(range(x.ndim - 1))
    return native_moments(exact) if native else (exact.mean(axes), jnp.square(exact).mean(axes))


def _moments(local: tuple[Array, ...], axis_name: str | None) -> tuple[Array, Array]:
    """Returns mean and biased variance of each channel, float32 [C]; one collective for both."""
    mean, square = local if axis_name is None else jax.lax.pmean(local, axis_name)
    return mean, jnp.maximum(square - jnp.square(mean), 0.0)


def _scale_and_act(
    x: Array, a: Array, b: Array, act: Callable[[Array], Array] | None, recompute: bool
) -> Array:
    def run(x: Array, a: Array, b: Array) -> Array:
        y = x.astype(a.dtype) * a + b
        return (y if act is None else act(y)).astype(x.dtype)

    return run(x, a, b) if act is None or not recompute else jax.checkpoint(run)(x, a, b)

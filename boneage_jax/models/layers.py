"""Convolutions of EfficientNet as Flax modules: dense, pointwise and depthwise."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from boneage_jax.errors import InputError
from boneage_jax.models import fused_block, gpu_block
from boneage_jax.models.depthwise import (
    chosen,
    depthwise_conv,
    exact_pads,
    fused_depthwise,
    runs_natively,
)
from boneage_jax.models.initializers import kernel_of, variance_scaling
from boneage_jax.models.strips import borders, cut_windows

Array = jax.Array

# Variance scaling as in the paper's TPU code: normal, fan out; signals do not shrink with depth.
_conv_init = variance_scaling(2.0, "fan_out")
# The same for depthwise kernels [k, k, 1, C]: one output depends on k * k weights, whatever C.
_depthwise_init = variance_scaling(2.0, "fan_in")


class Conv(nn.Module):
    """Convolution, by default without bias: dense k x k, or 1x1 as a matrix product.

    Attributes:
      padding: 'same' (TensorFlow's rule, asymmetric at stride 2) or 'symmetric' (PyTorch's).
      implementation: of the depthwise convolutions between which it stands. All but 'fused' run 1x1
        as a product of two matrices. This fixes the order of the pixels in memory; on a TPU the
        depthwise convolutions prefer another.
    """

    features: int
    kernel: int = 1
    stride: int = 1
    padding: str = "same"
    use_bias: bool = False
    implementation: str = "lax"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Array,
        norm: tuple[Array, Array] | None = None,
        gate: Array | None = None,
        act: Any = None,
        *,
        moments: bool = False,
        windows: bool = False,
    ) -> Any:
        """Convolves [B, H, W, C].

        1x1 kernels can multiply `act(x * a + b) * gate` instead, with `norm` a, b [C] and gate
        [B, C], or return the means [F] of the result and of its square as well, and the pair of
        arrays that is multiplied. Larger ones can convolve `windows`, which have all rows that they
        need.
        """
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        weights = kernel_of(self, _conv_init, shape).astype(self.dtype)
        x = x.astype(self.dtype)
        gpu = self.implementation == "cudnn"
        if norm is not None:
            product = (gpu_block if gpu else fused_block).gated_product
            return product(x, *norm, gate, weights, act)
        if moments:
            return *fused_block.pointwise_with_moments(x, weights), (x, weights)
        matrix = self.kernel == 1 and self.stride == 1 and self.implementation != "fused"
        if matrix and gpu and not self.use_bias:
            x = gpu_block.pointwise(x, weights)
        elif matrix:
            # Flattened to [B*H*W, C]: for a four-dimensional product XLA's CPU backend copies a
            # transposed operand for the kernel gradient, which doubles the layer's backward time.
            x = (x.reshape(-1, x.shape[-1]) @ weights[0, 0]).reshape(*x.shape[:-1], self.features)
        else:
            padding = pads(self.padding, self.kernel)
            if windows:
                exact = exact_pads(x.shape[1:3], self.kernel, self.stride, padding)
                padding = ((0, 0), exact[1])
            x = jax.lax.conv_general_dilated(
                x,
                weights,
                (self.stride, self.stride),
                padding,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
        if self.use_bias:
            x += self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32).astype(
                self.dtype
            )
        return x

    def cut(self, x: Array, strips: int) -> Array:
        """Returns the windows of each strip, see `boneage_jax.models.strips.cut_windows`."""
        x = x.astype(self.dtype)
        padding = pads(self.padding, self.kernel)
        exact = exact_pads(x.shape[1:3], self.kernel, self.stride, padding)
        return cut_windows(x, strips, self.kernel, self.stride, exact[0])


class DepthwiseConv(nn.Module):
    """Depthwise convolution, see `boneage_jax.models.depthwise`. Parameter: kernel [k, k, 1, C]."""

    kernel: int
    stride: int = 1
    padding: str = "same"
    implementation: str = "auto"
    train: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Array,
        norm: tuple[Array, Array] | None = None,
        act: Any = None,
        strips: int = 1,
        edges: Any = None,
        source: Any = None,
    ) -> Array:
        """Convolves [B, H, W, C], after `act(x * a + b)` if `norm` gives a, b [C].

        With more than one of `strips`, as if these were joined; `edges` are then the `borders` of
        `x`. For `source` see `boneage_jax.models.depthwise.fused_depthwise`.
        """
        shape = (self.kernel, self.kernel, 1, x.shape[-1])
        weights = kernel_of(self, _depthwise_init, shape).astype(self.dtype)
        x, padding = x.astype(self.dtype), pads(self.padding, self.kernel)
        if norm is not None:
            return fused_depthwise(
                *(x, *norm, weights),
                act=act,
                stride=self.stride,
                padding=padding,
                native=self.train and runs_natively(self.implementation, x.dtype),
                keep=chosen(self.implementation, self.train) == "cudnn",
                strips=strips,
                edges=edges,
                source=source,
            )
        return depthwise_conv(
            x,
            weights,
            stride=self.stride,
            padding=padding,
            implementation=self.implementation,
            train=self.train,
            strips=strips,
        )

    def borders(self, x: Array, strips: int) -> tuple[Array, Array]:
        """Returns the rows of each strip [B * strips, H, W, C] that convolving others reads."""
        shape = (x.shape[1] * strips, x.shape[2])
        padding = exact_pads(shape, self.kernel, self.stride, pads(self.padding, self.kernel))
        return borders(x, self.kernel, self.stride, padding[0])


def pads(padding: str, kernel: int) -> Any:
    """Returns the lax padding argument for 'same' or 'symmetric'; raises InputError for others."""
    if padding not in ("same", "symmetric"):
        raise InputError(f"padding={padding!r} is unknown; choose 'same' or 'symmetric'")
    return "SAME" if padding == "same" else ((kernel // 2, kernel // 2),) * 2

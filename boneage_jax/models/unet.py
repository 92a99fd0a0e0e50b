"""U-Net for hand masks (Ronneberger et al., MICCAI 2015), one channel in, logits out.

Variants are one line each in `VARIANTS`. `unet` reads the image in blocks of pixels
(space to depth) and writes its logits the same way, so that no layer runs at full resolution:
at 256 px it costs a twelfth of `unet_10`, the network of the earlier recipe.
"""

import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from boneage_jax.models.batch_norm import BatchNorm
from boneage_jax.models.convolution import conv_general_dilated
from boneage_jax.models.initializers import variance_scaling
from boneage_jax.models.native import is_enabled
from boneage_jax.models.resolution import ConvTranspose, depth_to_space, max_pool, space_to_depth

Array = jax.Array


class _Variant(NamedTuple):
    widths: tuple[int, ...]  # channels of each level, the last one the bottom
    convs: int  # 3x3 convolutions per level and side
    block: int  # side in pixels of the blocks that the stem reads
    norm: bool  # BatchNorm after each 3x3 convolution
    up: int  # kernel of the transposed convolution, stride 2
    head: int  # kernel of the output convolution


VARIANTS: dict[str, _Variant] = {
    "unet": _Variant((8, 16, 32, 64, 96), 1, 2, True, 2, 1),
    "unet_wide": _Variant((16, 32, 48, 64, 96), 1, 2, True, 2, 1),
    "unet_10": _Variant((10, 20, 40, 80, 160), 2, 1, False, 3, 2),
}
_HE = variance_scaling(2.0, "fan_in")
# Prior log-odds of hand pixels: a hand covers about a third of a radiograph.
_PRIOR = math.log(0.3 / 0.7)


class UNet(nn.Module):
    """U-Net that predicts a hand logit for every pixel.

    Attributes:
      variant: a key of `VARIANTS`.
      dtype: dtype of the computation; parameters and logits are float32.
      bn_momentum: weight of the old running statistics in an update.
      bn_axis_name: device axis over which BatchNorm statistics are averaged, or None.
      portable: use the same operations on every backend, those that other formats have as well.
    """

    variant: str = "unet"
    dtype: Any = jnp.float32
    bn_momentum: float = 0.9
    bn_axis_name: str | None = None
    portable: bool = False

    @nn.compact
    def __call__(self, images: Array, *, train: bool = False) -> Array:
        """Maps images, float [B, H, W, 1], to logits, float32 [B, H, W, 1].

        Accepts any height and width: images are padded to a multiple of the network's stride, and
        the padding is cropped from the logits.
        """
        spec = VARIANTS[self.variant]
        stride = spec.block * 2 ** (len(spec.widths) - 1)
        height, width = images.shape[1:3]
        bottom, right = -height % stride, -width % stride
        x = images
        if bottom or right:
            x = jnp.pad(x, ((0, 0), (0, bottom), (0, right), (0, 0)), mode="edge")
        x = space_to_depth(x.astype(self.dtype), spec.block)

        skips = []
        for level, filters in enumerate(spec.widths):
            if level:
                skips.append(x)
                x = max_pool(x)
            x = self._convs(x, filters, f"down{level}", train)
        for level in reversed(range(len(spec.widths) - 1)):
            filters = spec.widths[level]
            up = ConvTranspose(
                filters, spec.up, dtype=self.dtype, portable=self.portable, name=f"up{level}"
            )
            x = up(x)
            x = jnp.concatenate([skips.pop(), x], axis=-1)
            x = self._convs(x, filters, f"merge{level}", train)
        # One logit per pixel of a block; float32 from here on.
        x = nn.Conv(
            spec.block**2,
            (spec.head, spec.head),
            dtype=self.dtype,
            conv_general_dilated=self._convolution(train),
            bias_init=nn.initializers.constant(_PRIOR),
            name="head",
        )(x)
        logits = depth_to_space(x.astype(jnp.float32), spec.block)
        return logits[:, :height, :width]

    def _convolution(self, train: bool) -> Any:
        if self.portable:
            return jax.lax.conv_general_dilated
        return functools.partial(conv_general_dilated, native=train and is_enabled(self.dtype))

    def _convs(self, x: Array, filters: int, name: str, train: bool) -> Array:
        spec = VARIANTS[self.variant]
        for index in range(spec.convs):
            part = f"{name}_{index}"
            x = nn.Conv(
                filters,
                (3, 3),
                use_bias=not spec.norm,
                dtype=self.dtype,
                conv_general_dilated=self._convolution(train),
                kernel_init=_HE,
                name=f"{part}_conv",
            )(x)
            if spec.norm:
                x = BatchNorm(
                    use_running_average=not train,
                    momentum=self.bn_momentum,
                    axis_name=self.bn_axis_name,
                    act=nn.relu,
                    name=f"{part}_bn",
                )(x)
            else:
                x = nn.relu(x)
        return x

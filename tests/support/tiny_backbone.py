"""The networks of tests, by `config.model.name`: tiny and tiny_unet are compiled in a second.

tiny_b0 and tiny_lite0 have one block per stage, seven in place of sixteen: half of the time of
EfficientNet-B0 and EfficientNet-Lite0. larger_b0 and larger_lite0 are wider and deeper than these.
"""

import flax.linen as nn
import jax

from boneage_jax import register_model
from boneage_jax.models.efficientnet import VARIANTS, EfficientNet

for name in ("b0", "lite0"):
    VARIANTS[f"tiny_{name}"] = VARIANTS[f"efficientnet_{name}"]._replace(depth=0.1)
    VARIANTS[f"larger_{name}"] = VARIANTS[f"efficientnet_{name}"]._replace(width=1.3, depth=0.5)


@register_model("tiny")
class TinyBackbone(nn.Module):
    """One strided convolution, BatchNorm, pooling: the smallest backbone with statistics."""

    bn_axis_name: str | None = None

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool = False, image_keys: jax.Array | None = None
    ) -> jax.Array:
        x = nn.Conv(8, (3, 3), strides=2, use_bias=False)(images)
        norm = nn.BatchNorm(momentum=0.9, axis_name=self.bn_axis_name)
        return nn.relu(norm(x, use_running_average=not train)).mean((1, 2))


@register_model("tiny_unet")
class TinyUNet(nn.Module):
    """Two convolutions in place of a U-Net."""

    bn_axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        x = nn.Conv(4, (3, 3), use_bias=False)(images)
        norm = nn.BatchNorm(momentum=0.9, axis_name=self.bn_axis_name)
        return nn.Conv(1, (3, 3))(nn.relu(norm(x, use_running_average=not train)))


@register_model("tiny_lite0")
class TinyLite0(EfficientNet):
    """EfficientNet-Lite0 without repeated blocks."""

    variant: str = "tiny_lite0"


@register_model("larger_lite0")
class LargerLite0(EfficientNet):
    """An EfficientNet-Lite that holds tiny_lite0."""

    variant: str = "larger_lite0"

"""The backbone of tests: compiled in a second."""

import flax.linen as nn
import jax


class TinyBackbone(nn.Module):
    """One strided convolution, BatchNorm, pooling: the smallest backbone with statistics."""

    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool = False, image_keys: jax.Array | None = None
    ) -> jax.Array:
        x = nn.Conv(8, (3, 3), strides=2, use_bias=False)(images)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, axis_name=self.axis_name)(x)
        return nn.relu(x).mean((1, 2))

"""EfficientNet (Tan & Le 2019, arXiv:1905.11946) and EfficientNet-Lite in Flax Linen.

Submodules are named as in `keras.applications`: stem_conv, block1a_dwconv, top_bn ... The Lite
variants (github.com/tensorflow/tpu, efficientnet/lite) drop squeeze-and-excite, use ReLU6, and
scale neither stem nor head nor the depth of the first and last stage.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from boneage_jax.models import fused_block, gpu_block
from boneage_jax.models.batch_norm import BatchNorm
from boneage_jax.models.depthwise import chosen, runs_natively
from boneage_jax.models.layers import Conv, DepthwiseConv
from boneage_jax.models.recompute import recomputed
from boneage_jax.models.strips import join, mean_of_strips, strips_for, to_strips

Array = jax.Array
Module = Callable[..., Any]


class Variant(NamedTuple):
    """Scaling of one family member; `resolution` is its design image size in pixels."""

    width: float
    depth: float
    resolution: int
    dropout: float
    lite: bool = False


VARIANTS = {
    "efficientnet_b0": Variant(1.0, 1.0, 224, 0.2),
    "efficientnet_b1": Variant(1.0, 1.1, 240, 0.2),
    "efficientnet_b2": Variant(1.1, 1.2, 260, 0.3),
    "efficientnet_b3": Variant(1.2, 1.4, 300, 0.3),
    "efficientnet_b4": Variant(1.4, 1.8, 380, 0.4),
    "efficientnet_b5": Variant(1.6, 2.2, 456, 0.4),
    "efficientnet_b6": Variant(1.8, 2.6, 528, 0.5),
    "efficientnet_b7": Variant(2.0, 3.1, 600, 0.5),
    "efficientnet_lite0": Variant(1.0, 1.0, 224, 0.2, lite=True),
    "efficientnet_lite1": Variant(1.0, 1.1, 240, 0.2, lite=True),
    "efficientnet_lite2": Variant(1.1, 1.2, 260, 0.3, lite=True),
    "efficientnet_lite3": Variant(1.2, 1.4, 280, 0.3, lite=True),
    "efficientnet_lite4": Variant(1.4, 1.8, 300, 0.3, lite=True),
}

CUT_STAGES = 2  # at whose end strips are joined; the rows of the third stage are too few

# The stage whose first block holds the largest features: for a TPU, but in Lite, these are computed
# again for the gradients. Other stages would save less memory than that costs in traffic.
RECOMPUTED = 2


class Stage(NamedTuple):
    """One stage of B0 before scaling."""

    kernel: int
    repeats: int
    filters: int
    expand: int
    stride: int


STAGES = (
    Stage(3, 1, 16, 1, 1),
    Stage(3, 2, 24, 6, 2),
    Stage(5, 2, 40, 6, 2),
    Stage(3, 3, 80, 6, 2),
    Stage(5, 3, 112, 6, 1),
    Stage(5, 4, 192, 6, 2),
    Stage(3, 1, 320, 6, 1),
)

_dense_init = nn.initializers.variance_scaling(1 / 3, "fan_out", "uniform")


def round_filters(filters: int, width: float) -> int:
    """Scales a channel count and rounds it to a multiple of 8, at least 90 % of the exact value."""
    scaled = filters * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return int(rounded + 8 if rounded < 0.9 * scaled else rounded)


def stage_repeats(spec: Variant) -> list[int]:
    """Returns the number of blocks of each of the seven stages."""
    return [
        stage.repeats
        if spec.lite and number in (0, len(STAGES) - 1)
        else math.ceil(stage.repeats * spec.depth)
        for number, stage in enumerate(STAGES)
    ]


def layer_names(variant: str) -> dict[str, list[str]]:
    """Returns the layers of each block, both ordered from input to output.

    A layer is a convolution, named without its suffix `_conv`, e.g. stem, block2a_expand,
    block2a_dwconv, block2a_se_reduce, block2a_project, top; it includes the BatchNorm after the
    convolution. Blocks are stem, block1a ... and top.

    Args:
      variant: a key of `VARIANTS`.
    """
    spec = VARIANTS[variant]
    blocks = {"stem": ["stem"]}
    for number, (stage, repeats) in enumerate(zip(STAGES, stage_repeats(spec), strict=True), 1):
        for repeat in range(repeats):
            name = f"block{number}{chr(ord('a') + repeat)}"
            parts = ["expand"] if stage.expand != 1 else []
            parts += ["dwconv"] if spec.lite else ["dwconv", "se_reduce", "se_expand"]
            blocks[name] = [f"{name}_{part}" for part in (*parts, "project")]
    return blocks | {"top": ["top"]}


def layer_of(module: str) -> str:
    """Returns the layer that a submodule belongs to: block2a_expand for block2a_expand_bn."""
    if module.endswith("_conv"):
        return module.removesuffix("_conv")
    if not module.endswith("_bn"):
        return module  # depthwise, squeeze-and-excite
    name = module.removesuffix("_bn")
    # The BatchNorm after a depthwise convolution is named after its block only.
    return name if name in ("stem", "top") or "_" in name else f"{name}_dwconv"


class EfficientNet(nn.Module):
    """EfficientNet, up to pooled features or class logits.

    Attributes:
      variant: a key of `VARIANTS`.
      num_classes: number of classes, 0 for pooled features.
      dtype: dtype of the computation; parameters and statistics are float32.
      padding: 'same' or 'symmetric', see `Conv`.
      bn_momentum, bn_epsilon: settings of BatchNorm; momentum is the weight of the old statistics.
      bn_axis_name: device axis over which batch statistics are averaged, or None.
      dropout: rate before the classifier; None for the variant's own.
      drop_path_rate: rate of stochastic depth (arXiv:1603.09382), rising linearly from 0 at the
        first block.
      depthwise: implementation, see `boneage_jax.models.depthwise`.
      constant_channel: append a channel of ones to the images; like the images, it is zero in the
        padding. A stem folded from colour channels of unequal means is then exact at the border
        too, see `boneage_jax.pretrained.stem`.
      remat: recompute the activations of a block in the backward pass instead of storing them:
        larger batches fit, for about a third more FLOPs (Chen et al. 2016, arXiv:1604.06174).
      images_per_device: images that one device computes at a time, or 0. In train steps on a TPU
        the images of the first stages are cut into strips by it, see `boneage_jax.models.strips`.
      frozen: layers (see `layer_names`) that are not trained: their BatchNorm uses the running
        statistics in training too, and stochastic depth never drops a fully frozen block.
    """

    variant: str
    num_classes: int = 0
    dtype: Any = jnp.float32
    padding: str = "same"
    bn_momentum: float = 0.99
    bn_epsilon: float = 1e-3
    bn_axis_name: str | None = None
    dropout: float | None = None
    drop_path_rate: float = 0.2
    depthwise: str = "auto"
    constant_channel: bool = False
    remat: bool = False
    images_per_device: int = 0
    frozen: frozenset[str] = frozenset()

    @nn.compact
    def __call__(
        self,
        x: Array,
        *,
        train: bool = False,
        image_keys: Array | None = None,
        endpoints: bool = False,
    ) -> Any:
        """Runs the network.

        Args:
          x: normalised images [B, H, W, C], any C (1 for radiographs).
          train: use batch statistics, dropout and stochastic depth.
          image_keys: [B] typed keys, one per image, so that random draws do not depend on which
            device an image is on. Required in training with a rate above 0.
          endpoints: also return the features of each stage.

        Returns:
          Pooled features [B, F] or logits [B, num_classes], of `dtype`; with `endpoints`, a pair
          with a dict of 'stem', 'block1' ... 'block7', 'top' [B, H', W', C'] and 'pooled' [B, F].

        Raises:
          ValueError: training with stochastic depth or dropout, but without keys.
        """
        spec = VARIANTS[self.variant]
        dropout = spec.dropout if self.dropout is None else self.dropout
        act: Callable[[Array], Array] = nn.relu6 if spec.lite else nn.swish
        kind = chosen(self.depthwise, train)
        arranged = kind in ("fused", "cudnn")
        fold = arranged or (train and runs_natively(self.depthwise, self.dtype))
        conv = functools.partial(Conv, padding=self.padding, implementation=kind, dtype=self.dtype)
        depthwise = functools.partial(
            DepthwiseConv,
            padding=self.padding,
            implementation=self.depthwise,
            train=train,
            dtype=self.dtype,
        )
        make_norm = functools.partial(
            BatchNorm,
            momentum=self.bn_momentum,
            epsilon=self.bn_epsilon,
            axis_name=self.bn_axis_name,
            recompute=kind != "fused",
            triton=kind == "cudnn",
        )

        def norm(*, name: str, **options: Any) -> Any:
            fixed = not train or layer_of(name) in self.frozen
            return make_norm(name=name, use_running_average=fixed, **options)

        width = functools.partial(round_filters, width=spec.width)
        fixed = (lambda filters: filters) if spec.lite else width
        repeats = stage_repeats(spec)
        blocks = sum(repeats)
        drops: Array | None = None
        if train and (self.drop_path_rate or (dropout and self.num_classes)):
            if image_keys is None:
                raise ValueError("image_keys is None: training with dropout needs a key per image")
            drops = jax.vmap(lambda key: jax.random.uniform(key, (blocks,)))(image_keys)

        seen: dict[str, Array] = {}
        if self.constant_channel:
            x = jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)
        strips = 1
        if train and kind == "fused" and not endpoints:
            strips = strips_for(self.images_per_device, (x.shape[1] + 1) // 2)
        stem = conv(fixed(32), 3, 2, name="stem_conv")
        edges: Any = None
        if strips > 1:
            x = stem.cut(x, strips)
            # Kernels of the first stage reach one row of the next strip.
            edges = tuple(stem(rows, windows=True) for rows in (x[:, -3:], x[:, :3]))
        x = stem(x, windows=strips > 1)
        # On a CPU storing the activation of these features takes no longer than computing it again
        # in each pass of the first convolution.
        inside = kind == "fused"
        before = norm(act=act, name="stem_bn", fold=inside)(x)
        if endpoints:
            seen["stem"] = act(x * before[0] + before[1]).astype(x.dtype) if inside else before
        if not inside:
            x, before = before, None
        index = 0
        for number, stage in enumerate(STAGES, start=1):
            for repeat in range(repeats[number - 1]):
                name = f"block{number}{chr(ord('a') + repeat)}"
                rate = self.drop_path_rate * index / blocks
                frozen = f"{name}_project" in self.frozen  # layers are, from the input on
                if frozen:
                    rate = 0.0
                run = functools.partial(
                    EfficientNet._block,
                    name=name,
                    stage=stage,
                    first=repeat == 0,
                    filters=width(stage.filters),
                    rate=rate,
                    act=act,
                    lite=spec.lite,
                    fold=fold,
                    kind=kind if arranged and not spec.lite else "",
                    conv=conv,
                    depthwise=depthwise,
                    norm=norm,
                    strips=strips,
                    recompute=number == RECOMPUTED and repeat == 0 and not self.remat,
                )
                # float32 uniform in [0, 1): an image keeps its branch if draw >= rate.
                keep = None if drops is None or not rate else drops[:, index] >= rate
                block = recomputed(run) if self.remat and train and not frozen else run
                x = block(self, x, keep, before, edges)
                before = edges = None
                index += 1
            if number == CUT_STAGES:
                x, strips = join(x, strips), 1
            seen[f"block{number}"] = x
        x = conv(fixed(1280), name="top_conv")(x)
        x = seen["top"] = norm(act=act, name="top_bn")(x)
        x = seen["pooled"] = x.mean((1, 2))  # [B, F]
        if self.num_classes:
            if train and dropout:
                assert image_keys is not None
                keys = jax.vmap(jax.random.fold_in, (0, None))(image_keys, blocks)
                kept = jax.vmap(lambda k: jax.random.bernoulli(k, 1 - dropout, x.shape[1:]))(keys)
                x = jnp.where(kept, x / (1 - dropout), 0)
            x = nn.Dense(
                self.num_classes, dtype=self.dtype, kernel_init=_dense_init, name="predictions"
            )(x)
        return (x, seen) if endpoints else x

    def _block(
        self,
        x: Array,
        keep: Array | None,
        before: tuple[Array, Array] | None,
        edges: tuple[Array, Array] | None,
        *,
        name: str,
        stage: Stage,
        first: bool,
        filters: int,
        rate: float,
        act: Callable[[Array], Array],
        lite: bool,
        fold: bool,
        kind: str,
        conv: Module,
        depthwise: Module,
        norm: Module,
        strips: int,
        recompute: bool,
    ) -> Array:
        """Applies one inverted bottleneck: expand, depthwise, squeeze-and-excite, project, add.

        With `before`, to `act(x * a + b)`; `edges` are then the borders of `x`.
        """
        inputs, channels = x, x.shape[-1]
        stride = stage.stride if first else 1
        dwconv = depthwise(stage.kernel, stride, name=f"{name}_dwconv")
        spatial = functools.partial(dwconv, strips=strips, edges=edges)
        if stage.expand != 1:
            expand = conv(channels * stage.expand, name=f"{name}_expand_conv")
            expand_norm = norm(act=act, name=f"{name}_expand_bn", fold=fold)
            moments: Any = ()
            if kind == "fused":
                x, *moments, source = expand(x, moments=True)
                if recompute:
                    spatial = functools.partial(spatial, source=source)
            else:
                x = expand(x)
            if strips > 1:  # borders of the wide features, from the narrow ones
                edges = tuple(expand(rows) for rows in dwconv.borders(inputs, strips))
                spatial = functools.partial(spatial, edges=edges)
            x = spatial(x, expand_norm(x, *moments), act) if fold else spatial(expand_norm(x))
        else:
            x = spatial(x) if before is None else spatial(x, before, act)
        folded = norm(act=act, name=f"{name}_bn", fold=bool(kind))(x)
        x = x if kind else folded
        gate: Any = None
        if not lite:
            reduced = max(1, channels // 4)
            pooled_act = (gpu_block if kind == "cudnn" else fused_block).pooled_act
            gate = (
                mean_of_strips(pooled_act(x, *folded, act), strips)[:, None, None]
                if kind
                else x.mean((1, 2), keepdims=True)
            )
            gate = act(conv(reduced, use_bias=True, name=f"{name}_se_reduce")(gate))
            gate = nn.sigmoid(conv(x.shape[-1], use_bias=True, name=f"{name}_se_expand")(gate))
        residual = stride == 1 and channels == filters
        project = conv(filters, name=f"{name}_project_conv")
        if kind:
            x = project(x, folded, to_strips(gate[:, 0, 0], strips), act)
        else:
            x = project(x if gate is None else x * gate)
        # Residual branches start at zero (Goyal et al. 2017, arXiv:1706.02677, section 5.1), so
        # that a deep network with random weights learns from the first steps on. Measured on
        # phantoms, B0 at 96 px: training MAE 35 instead of 45 months after 100 steps.
        start = nn.initializers.zeros if residual else nn.initializers.ones
        x = norm(scale_init=start, name=f"{name}_project_bn")(x)
        if not residual:
            return x
        if keep is not None:
            x = x * to_strips((keep / (1 - rate)).astype(x.dtype), strips)[:, None, None, None]
        return inputs + x

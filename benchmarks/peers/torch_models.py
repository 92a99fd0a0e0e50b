"""The networks of the comparison in PyTorch."""

from typing import NamedTuple

import timm
import torch
from torch import nn
from torch.nn import functional

TIMM = {"b0": "efficientnet_b0", "b4": "efficientnet_b4", "lite0": "efficientnet_lite0"}


class BoneAgeNet(nn.Module):
    """timm's EfficientNet on grey images with an age head and a sex head.

    timm's own layout, with symmetric padding: its copies of TensorFlow's networks pad in a layer of
    its own and are slower.
    """

    def __init__(self, model: str):
        super().__init__()
        self.backbone = timm.create_model(
            TIMM[model], in_chans=1, num_classes=0, drop_path_rate=0.2
        )
        self.dropout = nn.Dropout(0.2)
        self.age = nn.Linear(self.backbone.num_features, 1)
        self.sex = nn.Linear(self.backbone.num_features, 1)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images float [B, 1, H, W] -> age (standardised) and sex logit, float32 [B]."""
        x = self.dropout(self.backbone(images).float())
        return self.age(x)[:, 0], self.sex(x)[:, 0]


class _Variant(NamedTuple):
    """As in boneage_jax/models/unet.py."""

    widths: tuple[int, ...]
    convs: int
    block: int
    norm: bool
    up: int
    head: int


UNETS = {
    "unet": _Variant((8, 16, 32, 64, 96), 1, 2, True, 2, 1),
    "unet_10": _Variant((10, 20, 40, 80, 160), 2, 1, False, 3, 2),
}


class UNet(nn.Module):
    """The networks of boneage_jax/models/unet.py, layer by layer."""

    def __init__(self, name: str) -> None:
        super().__init__()
        spec = self.spec = UNETS[name]
        widths = spec.widths
        self.down = nn.ModuleList(
            _convs(spec, before, width)
            for before, width in zip((spec.block**2, *widths), widths, strict=False)
        )
        # Kernels of 3: padded at the other end than TensorFlow does, which needs no cut.
        extra = spec.up - 2
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(before, width, spec.up, 2, padding=extra, output_padding=extra)
            for before, width in zip(widths[1:], widths, strict=False)
        )
        self.merge = nn.ModuleList(_convs(spec, 2 * width, width) for width in widths[:-1])
        self.head = nn.Conv2d(widths[0], spec.block**2, spec.head)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images float [B, 1, H, W], sides multiples of 32 -> logits float32 [B, 1, H, W]."""
        skips = []
        x = functional.pixel_unshuffle(images, self.spec.block)
        for level, convs in enumerate(self.down):
            if level:
                skips.append(x)
                x = functional.max_pool2d(x, 2)
            x = convs(x)
        for level in reversed(range(len(self.up))):
            x = torch.cat([skips.pop(), self.up[level](x)], dim=1)
            x = self.merge[level](x)
        # An even kernel pads at the end, as TensorFlow's rule does.
        rest = self.spec.head - 1
        x = self.head(functional.pad(x, (0, rest, 0, rest)) if rest else x)
        return functional.pixel_shuffle(x.float(), self.spec.block)


def _convs(spec: _Variant, before: int, width: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index in range(spec.convs):
        first = width if index else before
        layers.append(nn.Conv2d(first, width, 3, padding=1, bias=not spec.norm))
        if spec.norm:
            layers.append(nn.BatchNorm2d(width, eps=1e-3))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)

"""The networks of the comparison in PyTorch."""

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


class UNet10(nn.Module):
    """`unet_10` of boneage_jax/models/unet.py: ten start filters, two convolutions per level."""

    def __init__(self) -> None:
        super().__init__()
        widths = (10, 20, 40, 80, 160)
        self.down = nn.ModuleList(
            _convs(before, width) for before, width in zip((1, *widths), widths, strict=False)
        )
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(2 * width, width, 3, stride=2, padding=1, output_padding=1)
            for width in widths[:-1]
        )
        self.merge = nn.ModuleList(_convs(2 * width, width) for width in widths[:-1])
        self.head = nn.Conv2d(widths[0], 1, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images float [B, 1, H, W], sides multiples of 16 -> logits float32 [B, 1, H, W]."""
        skips = []
        x = images
        for level, convs in enumerate(self.down):
            if level:
                skips.append(x)
                x = functional.max_pool2d(x, 2)
            x = convs(x)
        for level in reversed(range(len(self.up))):
            x = torch.cat([skips.pop(), self.up[level](x)], dim=1)
            x = self.merge[level](x)
        # An even kernel pads at the end, as TensorFlow's rule does.
        return self.head(functional.pad(x, (0, 1, 0, 1))).float()


def _convs(before: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, width, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(inplace=True),
    )

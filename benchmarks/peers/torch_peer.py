"""Contender: PyTorch with timm, eager or compiled, in either memory format.

usage: torch_peer.py SETTINGS [compile] [channels_last]
"""

import sys

import timm
import torch
from torch import nn
from torch.nn import functional

from benchmarks.peers.contender import Ready, Settings, serve, synthetic_batch
from benchmarks.peers.torch_models import UNETS, BoneAgeNet, UNet

AGE_MEAN, AGE_STD, SEX_WEIGHT = 127.32, 41.18, 0.1


def read(images: torch.Tensor) -> torch.Tensor:
    """uint8 [B, 1, H, W] -> each image standardised, float32."""
    x = images.float()
    mean, std = x.mean((1, 2, 3), keepdim=True), x.std((1, 2, 3), keepdim=True)
    return (x - mean) / (std + 1e-6)


def mirrored(x: torch.Tensor, flip: torch.Tensor) -> torch.Tensor:
    """Left-right mirror images where `flip` [B] says so."""
    return torch.where(flip[:, None, None, None], x.flip(3), x)


def age_loss(outputs: tuple[torch.Tensor, torch.Tensor], batch: dict) -> torch.Tensor:
    """L1 of the standardised age and a little cross-entropy of the sex."""
    age, sex = outputs
    target = (batch["bone_age"] - AGE_MEAN) / AGE_STD
    cross_entropy = functional.binary_cross_entropy_with_logits(sex, batch["male"].float())
    return functional.l1_loss(age, target) + SEX_WEIGHT * cross_entropy


def mask_loss(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Cross-entropy and soft Dice of each image."""
    target = mask.float()
    p = torch.sigmoid(logits)
    overlap, both = (p * target).sum((1, 2, 3)), (p + target).sum((1, 2, 3))
    dice = ((2 * overlap + 1) / (both + 1)).mean()
    return functional.binary_cross_entropy_with_logits(logits, target) + 1 - dice


def optimizer_of(net: nn.Module) -> torch.optim.Optimizer:
    """AdamW, with decay of kernels alone."""
    kernels = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim <= 1]
    groups = [{"params": kernels, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-3, fused=True)


def setup(settings: Settings) -> Ready:
    """The train or inference step."""
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")  # on GPU TensorFloat-32, as JAX's default
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    masks = settings.model in UNETS
    train = settings.mode == "train"
    net = (UNet(settings.model) if masks else BoneAgeNet(settings.model)).to(device).train(train)
    batch = {key: torch.from_numpy(x).to(device) for key, x in synthetic_batch(settings).items()}
    for key in ("image", "mask"):
        batch[key] = batch[key].permute(0, 3, 1, 2).contiguous()
    parameters = sum(p.numel() for p in net.parameters())
    if "channels_last" in sys.argv:
        net = net.to(memory_format=torch.channels_last)
    compiled = torch.compile(net) if "compile" in sys.argv else net
    low = torch.autocast(device.type, torch.bfloat16, enabled=settings.dtype == "bfloat16")
    layout = torch.channels_last if "channels_last" in sys.argv else torch.contiguous_format

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    optimizer = optimizer_of(net)

    def step() -> None:
        flip = torch.rand(settings.batch, device=device) < 0.5
        images = mirrored(read(batch["image"]), flip).contiguous(memory_format=layout)
        optimizer.zero_grad(set_to_none=True)
        with low:
            outputs = compiled(images)
        if masks:
            loss = mask_loss(outputs, mirrored(batch["mask"], flip))
        else:
            loss = age_loss(outputs, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        wait()

    def inference() -> None:
        with torch.inference_mode(), low:
            compiled(read(batch["image"]).contiguous(memory_format=layout))
        wait()

    versions = {"torch": torch.__version__, "timm": timm.__version__}
    return Ready(step if train else inference, {"parameters": parameters, "versions": versions})


if __name__ == "__main__":
    serve(setup)

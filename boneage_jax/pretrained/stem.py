"""Input of a pretrained network: its normalisation, and its stem for grey images."""

import dataclasses
from typing import Any

import numpy as np

from boneage_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class InputNormalization:
    """Input normalisation of a network: (x - mean) / std with x in [0, 1].

    Attributes:
      mean: one number per channel.
      std: one number per channel.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        numbers = np.array([*self.mean, *self.std], np.float64)
        if len(self.mean) != len(self.std) or not self.mean or not np.isfinite(numbers).all():
            raise InputError(f"mean={self.mean} and std={self.std} need one number per channel")
        if min(self.std) <= 0:
            raise InputError(f"std={self.std} must be above 0")

    def __call__(self, images: Any) -> Any:
        """Normalises float images [..., C] in [0, 1]; a single channel is broadcast to all."""
        mean, std = (np.array(values, np.float32) for values in (self.mean, self.std))
        return (images - mean) / std

    @property
    def grey(self) -> "InputNormalization":
        """The normalisation for one channel: mean and standard deviation averaged over channels."""
        return InputNormalization((float(np.mean(self.mean)),), (float(np.mean(self.std)),))


IMAGENET = InputNormalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = InputNormalization((0.5,) * 3, (0.5,) * 3)
# github.com/tensorflow/tpu, efficientnet/lite/efficientnet_lite_builder.py: (pixel - 127) / 128.
LITE = InputNormalization((127 / 255,) * 3, (128 / 255,) * 3)


def fold_stem(kernel: np.ndarray, source: InputNormalization) -> tuple[np.ndarray, np.ndarray]:
    """Converts the stem of a colour network to one for a grey image repeated in all channels.

    Channel c of the source reads a grey image x as (x - m_c) / s_c. With u = (x - m) / s, where m
    and s are `source.grey`, this equals u s / s_c + (m - m_c) / s_c: one kernel on u and one on a
    constant 1. If all channels have the same mean, the second is zero. Otherwise its sum over the
    taps is an offset of each output, which can be absorbed in BatchNorm's mean. In the outermost
    row and column of outputs this is off by the taps that fall into the padding, where the source
    reads 0 in each channel; only a channel of ones that is padded with 0 (`constant_channel` of the
    network) is exact there too.

    Args:
      kernel: float32 [k, k, C, F].
      source: normalisation of the C channels.

    Returns:
      The kernels [k, k, 1, F] on u and on the constant, float32.

    Raises:
      InputError: `source` has another number of channels.
    """
    if len(source.mean) != kernel.shape[2]:
        raise InputError(
            f"the normalisation has {len(source.mean)} channels, the stem {kernel.shape[2]}"
        )
    mean, std = (np.array(values, np.float64) for values in (source.mean, source.std))
    grey = source.grey
    exact = kernel.astype(np.float64)
    on_grey = np.einsum("hwcf,c->hwf", exact, grey.std[0] / std)
    on_one = np.einsum("hwcf,c->hwf", exact, (grey.mean[0] - mean) / std)
    if np.ptp(mean) == 0:
        on_one = np.zeros_like(on_one)
    return on_grey[:, :, None].astype(np.float32), on_one[:, :, None].astype(np.float32)


def fit_stem(
    variables: dict[str, Any],
    channels: int,
    source: InputNormalization | None,
    *,
    constant_channel: bool = False,
) -> dict[str, Any]:
    """Returns variables whose stem reads `channels` channels, plus the constant one if requested.

    Args:
      variables: {'params', 'batch_stats'} of an EfficientNet as stored in its source; not modified.
      channels: channels of the images that the network will read.
      source: normalisation of the source; needed if channels are folded.
      constant_channel: whether the network has a constant input channel.

    Raises:
      InputError: the source has another number of channels and cannot be folded.
    """
    kernel = variables["params"]["stem_conv"]["kernel"]
    constant = np.zeros_like(kernel[:, :, :1])
    mean = variables["batch_stats"]["stem_bn"]["mean"]
    if channels == 1 and kernel.shape[2] > 1:
        if source is None:
            raise InputError("the normalisation of the source must be known to fold its channels")
        kernel, constant = fold_stem(kernel, source)
        if not constant_channel:
            mean = mean - constant.sum((0, 1, 2), dtype=np.float64).astype(np.float32)
    elif kernel.shape[2] != channels:
        raise InputError(
            f"the source reads {kernel.shape[2]} channels, channels={channels} was asked for"
        )
    if constant_channel:
        kernel = np.concatenate([kernel, constant], axis=2)
    params, stats = dict(variables["params"]), dict(variables["batch_stats"])
    params["stem_conv"] = params["stem_conv"] | {"kernel": kernel}
    stats["stem_bn"] = stats["stem_bn"] | {"mean": mean}
    return {"params": params, "batch_stats": stats}

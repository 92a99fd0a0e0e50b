"""A small network that reads how a radiograph is viewed: turned, inverted, framed, or no hand.

It reads a thumbnail, costs a few hundred times less than the network that reads the age, and is
fitted without labels by `boneage_jax.training.fit_view`. One function is both what JAX trains and
what NumPy runs in the threads that decode files, where a compiled step would have to be shared.
"""

import math
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import cv2
import numpy as np

SIDE = 48  # of a thumbnail, pixels
TURNS = 8  # steps of 45 degrees
SINGLE, SEVERAL, NONE = range(3)  # kinds: one hand, several, no hand
# Of what is not dark, the part that is not bright either: 0.10 to 0.20 of 60 hand masks, of 12,313
# radiographs 0.23, 0.42 and more, of all but four more than half.
_LEAST_GREY = 0.3
_CHANNELS = (1, 8, 16, 32, 48)
_KERNELS = (5, 3, 3, 3)  # all of stride 2
_HIDDEN = 48
_CELLS = (SIDE // 2 ** len(_KERNELS)) ** 2
_OUTPUTS = TURNS + 1 + 3 + 4

SHAPES: dict[str, tuple[int, ...]] = {
    **{
        f"kernel_{n}": (size * size * _CHANNELS[n], _CHANNELS[n + 1])
        for n, size in enumerate(_KERNELS)
    },
    **{f"bias_{n}": (_CHANNELS[n + 1],) for n in range(len(_KERNELS))},
    "hidden": (_CELLS * _CHANNELS[-1], _HIDDEN),
    "hidden_bias": (_HIDDEN,),
    "output": (_HIDDEN, _OUTPUTS),
    "output_bias": (_OUTPUTS,),
}

Weights = Mapping[str, Any]


class Outputs(NamedTuple):
    """Outputs of the network.

    Attributes:
      turn: logits [n, 8]: the content is turned counter-clockwise by as many times 45 degrees.
      inverted: logits [n].
      kind: logits [n, 3]: one hand, several, none.
      frame: [n, 4]: x and y of the centre of the frame that radiographs of training would have
        around this hand, in sides of the thumbnail from its centre; logs of its width and height.
    """

    turn: Any
    inverted: Any
    kind: Any
    frame: Any


def thumbnail(image: np.ndarray, side: int = SIDE) -> np.ndarray:
    """Shrinks an image to a square without its plain margins; uint8 [side, side].

    The aspect ratio is not kept: margins that square an image would tell how it is turned.

    Args:
      image: uint8 [H, W].
      side: pixels; the network reads the default.
    """
    # In two steps: a quarter of the time at three megapixels.
    image = shrunk(without_margins(image), 4 * side)
    return cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)


def shrunk(image: np.ndarray, least: int) -> np.ndarray:
    """Averages blocks of whole pixels, as large as leave `least` on the short side.

    Args:
      image: uint8 [H, W]; returned itself where it is not twice as large.
      least: pixels.
    """
    factor = min(image.shape) // least
    if factor < 2:
        return image
    height, width = (length // factor for length in image.shape)
    image = image[: height * factor, : width * factor]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def without_margins(image: np.ndarray) -> np.ndarray:
    """Returns the part of an image without rows and columns at its edges of one grey value."""
    for _ in range(2):
        first = next((n for n, line in enumerate(image) if _varies(line)), None)
        if first is None:
            return image
        last = next(n for n in range(len(image) - 1, -1, -1) if _varies(image[n]))
        image = image[first : last + 1].T
    return image


def _varies(line: np.ndarray) -> bool:
    return bool((line != line[0]).any())


def is_two_toned(thumbnails: Any) -> Any:
    """Tells pictures of two tones, as masks and silhouettes are, from radiographs.

    The network knows a hand by its outline, so a mask is one to it.

    Args:
      thumbnails: grey levels [n, 48, 48], arrays of NumPy or JAX.

    Returns:
      bool [n].
    """
    low, high = (find((-2, -1), keepdims=True) for find in (thumbnails.min, thumbnails.max))
    level = thumbnails.astype(np.float32) - low
    dark, bright = (part * (high.astype(np.float32) - low) for part in (0.1, 0.9))
    lit = (level > dark).sum((-2, -1))
    return ((level > dark) & (level < bright)).sum((-2, -1)) < _LEAST_GREY * lit


def apply(
    weights: Weights,
    thumbnails: Any,
    xp: ModuleType = np,
    taps: Callable[[Any, int], Any] | None = None,
) -> Outputs:
    """Runs the network.

    Args:
      weights: arrays by the names in `SHAPES`.
      thumbnails: uint8 [n, 48, 48], or with more axes before these, as the outputs have then.
      xp: `numpy`, or `jax.numpy` for training.
      taps: computes what `_taps` does, for graphs in which slices cost more than elsewhere.
    """
    taps = taps or (lambda x, size: _taps(x, size, xp))
    x = thumbnails.astype(np.float32)
    x = x - x.mean((-2, -1), keepdims=True)
    x = (x / (xp.sqrt((x * x).mean((-2, -1), keepdims=True)) + 2.0))[..., None]
    for n, size in enumerate(_KERNELS):
        x = taps(x, size) @ weights[f"kernel_{n}"] + weights[f"bias_{n}"]
        x = xp.maximum(x, 0.1 * x)
    x = (
        x.reshape(*x.shape[:-3], len(weights["hidden"])) @ weights["hidden"]
        + weights["hidden_bias"]
    )
    x = xp.maximum(x, 0.1 * x) @ weights["output"] + weights["output_bias"]
    turn, inverted, kind, frame = (
        x[..., :TURNS],
        x[..., TURNS],
        x[..., TURNS + 1 : TURNS + 4],
        x[..., TURNS + 4 : TURNS + 8],
    )
    return Outputs(turn, inverted, kind, frame)


def forward_flops() -> int:
    """Returns the FLOPs of one thumbnail; of JAX's products they are counted the same."""
    side, total = SIDE, 0
    for n in range(len(_KERNELS)):
        side //= 2
        total += 2 * side * side * math.prod(SHAPES[f"kernel_{n}"])
    return total + 2 * math.prod(SHAPES["hidden"]) + 2 * math.prod(SHAPES["output"])


def _taps(x: Any, size: int, xp: ModuleType) -> Any:
    """Returns what a convolution of stride 2 reads: a product with its kernel is its result.

    Args:
      x: [..., S, S, c].
      size: height and width of the kernel.
      xp: see `apply`.

    Returns:
      [..., S / 2, S / 2, size * size * c].
    """
    half, side = size // 2, x.shape[-2]
    x = xp.pad(x, (*[(0, 0)] * (x.ndim - 3), (half, half), (half, half), (0, 0)))
    taps = [
        x[..., row : row + side : 2, column : column + side : 2, :]
        for row in range(size)
        for column in range(size)
    ]
    return xp.concatenate(taps, axis=-1)

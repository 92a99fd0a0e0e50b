"""From pixel values of any depth to 8-bit grey."""

from typing import NamedTuple

import cv2
import numpy as np

from boneage_jax.data import notes

_TAIL = 0.1  # percent of pixels clipped at each end, so that burnt-in white cannot darken the hand
_EXACT = 1 << 24  # float32 holds whole numbers up to this


class Picture(NamedTuple):
    """A picture as it is stored.

    Attributes:
      values: integers or floats [H, W], or [H, W, 3] BGR.
      opacity: float32 [H, W] in 0..1, None if all is opaque.
      white_is_zero: whether low values are bright.
      said: notes of `boneage_jax.data.notes`.
    """

    values: np.ndarray
    opacity: np.ndarray | None = None
    white_is_zero: bool = False
    said: tuple[str, ...] = ()


def to_grey(picture: Picture) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns a picture as uint8 [H, W], transparency over black, and the notes on it.

    Raises:
      ValueError: it holds values that are not finite.
    """
    image, ranged = to_8_bit(picture.values, inverted=picture.white_is_zero)
    if image.ndim == 3:
        image = luma(image)
    if picture.opacity is not None:
        image = np.rint(image * picture.opacity).astype(np.uint8)
    return image, (*picture.said, notes.NO_WINDOW) if ranged else picture.said


def to_8_bit(
    values: np.ndarray,
    *,
    shown: np.ndarray | None = None,
    inverted: bool = False,
    keep: bool = True,
) -> tuple[np.ndarray, bool]:
    """Converts values to 8 bits: kept if they are 8-bit values already, else scaled by their range.

    The range goes from the 0.1th percentile (0) to the 99.9th (255). Floats are 8-bit values if
    they are whole numbers of 0 to 255 and not only 0 and 1.

    Args:
      values: integers or floats [H, W] or [H, W, 3].
      shown: bool [H, W], pixels that make up the range; None for all.
      inverted: whether low values are bright. Kept values are mirrored within their own range.
      keep: whether values may be 8-bit values already.

    Returns:
      (uint8 of the same shape, whether the range was used).

    Raises:
      ValueError: no pixels are shown, or they are not all finite.
    """
    if values.dtype == np.uint8 and keep and shown is None and not inverted:
        return np.ascontiguousarray(values), False
    pixels = values if shown is None else values[shown]
    if not pixels.size:
        raise ValueError("all of its pixels are padding")
    low, high = float(pixels.min()), float(pixels.max())
    if not np.isfinite(high - low):
        raise ValueError("it holds values that are not finite")
    if keep and low >= 0 and high <= 255 and _whole(pixels, high):
        kept = low + high - values if inverted else values
        return np.clip(kept, 0, 255).astype(np.uint8), False
    black, white = (float(p) for p in np.percentile(pixels, (_TAIL, 100 - _TAIL)))
    if black == white:
        black, white = low, high
    return scale(values, *((white, black) if inverted else (black, white))), True


def scale(values: np.ndarray, black: float, white: float) -> np.ndarray:
    """Maps `black` to 0 and `white` to 255, clipped and rounded; 0 everywhere if they are equal."""
    return np.rint(stretch(values, black, white)).astype(np.uint8)


def stretch(values: np.ndarray, black: float, white: float) -> np.ndarray:
    """Maps as `scale` does, without rounding: float32 or float64."""
    if black == white:
        return np.zeros(values.shape, np.float32)
    # Enough for 16 bits, and half the memory.
    exact = values.dtype.itemsize <= 2 or max(abs(black), abs(white)) < _EXACT
    real: type[np.floating] = np.float32 if exact else np.float64
    with np.errstate(over="ignore"):  # of outliers
        scaled = (values.astype(real) - real(black)) * real(255 / (white - black))
    return np.clip(scaled, 0, 255)


def luma(colours: np.ndarray) -> np.ndarray:
    """Returns the luma (BT.601) of uint8 [H, W, 3] BGR."""
    return cv2.cvtColor(colours, cv2.COLOR_BGR2GRAY)


def opacity(alpha: np.ndarray) -> np.ndarray:
    """Returns alpha as float32 in 0..1: integers by their largest value, floats as they are."""
    largest = np.iinfo(alpha.dtype).max if alpha.dtype.kind == "u" else 1
    return np.clip(alpha.astype(np.float32) / np.float32(largest), 0, 1)


def _whole(pixels: np.ndarray, high: float) -> bool:
    return pixels.dtype.kind in "iub" or bool(high > 1 and (pixels == np.rint(pixels)).all())

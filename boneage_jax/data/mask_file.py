"""Reads a hand mask from a PNG file: two values, two colours, or soft outlines; never classes."""

import os
from pathlib import Path

import cv2
import numpy as np

from boneage_jax.data.files import as_unreadable, read_bytes
from boneage_jax.data.headers import sniff
from boneage_jax.data.pictures import read_picture

_NAMED = 6  # values that a message names
_FEW = 32  # grey levels up to which flat areas are classes, not blur
_BETWEEN = (32, 223)  # grey levels that are neither background nor hand
_MOST = 0.2  # fraction of the pixels that may lie between


def read_mask(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads a mask, in which one value or colour beside 0 (black) is the hand.

    Grey outlines between 0 and 255 are cut at the middle. Files of several classes are refused:
    which of them is the hand cannot be seen.

    Args:
      path: a PNG file (or JPEG or TIFF by its content): grey, palette or colour, 8 or 16 bits.

    Returns:
      bool [H, W].

    Raises:
      UnreadableImage: missing, damaged, inverted (ImageJ writes such masks), or with more than two
        values or colours, which it names.
    """
    with as_unreadable(str(path)):
        data = read_bytes(Path(path))
        form = sniff(data)
        if form not in ("png", "jpeg", "tiff"):
            raise ValueError("the content is no PNG mask")
        picture = read_picture(data, form)
        values = picture.values
        if values.dtype not in (np.uint8, np.uint16) or picture.white_is_zero:
            raise ValueError(
                f"a mask of this kind ({values.dtype}) is not supported; save it as PNG"
            )
        if picture.opacity is not None:
            opacity = picture.opacity[..., None] if values.ndim == 3 else picture.opacity
            values = np.rint(values * opacity).astype(values.dtype)
        if values.ndim == 3 and (values == values[..., :1]).all():
            values = values[..., 0]
        mask = _of_grey(values) if values.ndim == 2 else _of_colours(values)
        border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
        if border.all() and not mask.all():
            raise ValueError("its whole border is hand: it seems inverted; 0 is the background")
        return mask


def _of_grey(values: np.ndarray) -> np.ndarray:
    top = int(np.iinfo(values.dtype).max)
    levels = np.flatnonzero(np.bincount(values.ravel(), minlength=top + 1)).tolist()
    if levels[0] == 0 and len(levels) <= 2:
        return values > 0
    if levels in ([1], [top]):
        return np.ones(values.shape, bool)
    grey = values if top == 255 else np.rint(values / 257).astype(np.uint8)
    if len(levels) > 2 and _is_soft(grey, levels[0] == 0 and levels[-1] == top, len(levels)):
        return grey > 127
    raise ValueError(
        f"it holds the values {_listed(levels)}; a mask holds 0 and one other, which is the hand"
    )


def _is_soft(grey: np.ndarray, from_black_to_white: bool, levels: int) -> bool:
    """Whether grey levels are blurred outlines, uint8 [H, W], rather than numbers of classes."""
    if levels > _FEW:
        low, high = _BETWEEN
        between = np.mean((grey > low) & (grey < high))
        return bool(grey.min() <= low and grey.max() >= high and between <= _MOST)
    block = np.ones((3, 3), np.uint8)
    flat = cv2.erode(grey, block) == cv2.dilate(grey, block)
    return from_black_to_white and set(np.unique(grey[flat]).tolist()) <= {0, 255}


def _of_colours(values: np.ndarray) -> np.ndarray:
    """Returns what is not black, of values [H, W, 3] BGR."""
    blue, green, red = (values[..., channel].astype(np.uint64) for channel in range(3))
    packed = (red << np.uint64(32)) | (green << np.uint64(16)) | blue
    hand = packed > 0
    if hand.any() and not hand.all() and (packed[hand] == packed[hand][0]).all():
        return hand
    colours = [
        tuple(int(colour) >> shift & 0xFFFF for shift in (32, 16, 0))
        for colour in np.unique(packed)
    ]
    raise ValueError(
        f"it holds the colours {_listed(colours)}; a mask holds black and one other, which is the "
        "hand"
    )


def _listed(values: list) -> str:
    more = f" and {len(values) - _NAMED} more" if len(values) > _NAMED else ""
    return ", ".join(map(str, values[:_NAMED])) + more

"""Pictures of a reading: the radiograph, and where the network finds the age."""

from collections.abc import Sequence

import cv2
import numpy as np

_OPACITY = 0.55
_MARGIN = 12  # pixels


def shown(image: np.ndarray, height: int) -> np.ndarray:
    """Returns a radiograph at a height in pixels, its proportions kept, uint8 [height, W]."""
    width = max(1, round(image.shape[1] * height / image.shape[0]))
    method = cv2.INTER_AREA if height < image.shape[0] else cv2.INTER_CUBIC
    return cv2.resize(image, (width, height), interpolation=method)


def heat_map(square: np.ndarray, contributions: np.ndarray, height: int, width: int) -> np.ndarray:
    """Draws what moves the age over the network's input.

    Args:
      square: the input, uint8 [S, S].
      contributions: see `boneage_jax.inference.saliency`, float32 [h, w].
      height, width: size of the result in pixels.

    Returns:
      uint8 [height, width, 3], RGB: the stronger a place moves the age, up or down, the hotter.
    """
    strength = np.abs(contributions)
    strength = cv2.resize(
        strength.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC
    )
    strength = np.clip(strength / max(float(strength.max()), 1e-6), 0, 1)
    base = cv2.resize(square, (width, height), interpolation=cv2.INTER_CUBIC)
    colours = cv2.applyColorMap((strength * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)
    alpha = _OPACITY * strength[..., None]
    grey = np.repeat(base[..., None], 3, axis=2)
    return np.rint(grey * (1 - alpha) + colours[..., ::-1] * alpha).astype(np.uint8)


def side_by_side(pictures: Sequence[np.ndarray], lines: Sequence[str]) -> np.ndarray:
    """Draws lines of text above pictures of one height.

    Args:
      pictures: uint8 [H, W] or [H, W, 3] RGB each, of the same H.
      lines: ASCII text.

    Returns:
      uint8 [H', W', 3] RGB.
    """
    height = pictures[0].shape[0]
    size = max(height / 900, 0.4)
    step = round(36 * size)
    colours = [p if p.ndim == 3 else np.repeat(p[..., None], 3, axis=2) for p in pictures]
    gap = np.zeros((height, _MARGIN, 3), np.uint8)
    parts = [part for picture in colours for part in (picture, gap)][:-1]
    body = np.concatenate(parts, axis=1)
    widest = max(cv2.getTextSize(line, cv2.FONT_HERSHEY_SIMPLEX, size, 1)[0][0] for line in lines)
    width = max(body.shape[1], widest + 2 * _MARGIN)
    canvas = np.zeros((height + step * len(lines) + _MARGIN, width, 3), np.uint8)
    canvas[-height:, : body.shape[1]] = body
    for number, line in enumerate(lines, 1):
        at = (_MARGIN, round(step * (number - 0.2)))
        cv2.putText(
            canvas, line, at, cv2.FONT_HERSHEY_SIMPLEX, size, (255, 255, 255), 1, cv2.LINE_AA
        )
    return canvas

"""Hand masks as arrays: cleaned, checked, and used to remove the background of a radiograph."""

import dataclasses
import math

import cv2
import numpy as np

from boneage_jax.data.files import fit_square, placement

MODES = ("crop", "upright", "multiply")

_MARGIN = 0.03  # margin around the hand's box, as a fraction of its longer side
_PART = 0.05  # fraction of the largest part's area: smaller parts are specks
_DARKEST = 24  # grey level of the darkest part of a stretched hand, above the background
_UPRIGHT_MIN = 1.15  # elongation below which the long axis does not indicate the hand's direction

# Limits for the mask of a whole hand; others should be reviewed. docs/masks.md states how many of
# 902 radiographs that are.
AREA = (0.04, 0.75)  # fraction of the image
NO_HAND = 0.01  # fraction of the image: less is a speck
CONFIDENCE = 0.97  # expected Dice
SIDES = 2  # maximum number of image sides that the mask touches: the forearm leaves through one
_TOUCH = 0.05  # fraction of a side that the mask must cover to touch it


@dataclasses.dataclass(frozen=True)
class MaskCheck:
    """Quality indicators of a mask that need no ground truth.

    Attributes:
      area: fraction of the image.
      parts: connected parts before the clean-up, not counting specks.
      sides: number of image sides that the mask touches.
      confidence: expected Dice under the network's own probabilities, 0..1.
      reasons: why a person should review the mask; empty if there is no reason.
    """

    area: float
    parts: int
    sides: int
    confidence: float
    reasons: tuple[str, ...]


def clean_mask(mask: np.ndarray, *, largest: bool = True, fill: bool = True) -> np.ndarray:
    """Keeps the largest connected part (8 neighbours) and fills its holes.

    Args:
      mask: bool [H, W].
      largest: drop all parts but the largest.
      fill: fill background that is enclosed (4 neighbours); background at the border stays.

    Returns:
      bool [H, W].
    """
    if largest:
        count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
        if count > 2:
            mask = labels == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    if fill:
        # With a frame of background added, the outer background is the part at the corner.
        outside = np.pad(~mask, 1, constant_values=True).astype(np.uint8)
        _, labels = cv2.connectedComponents(outside, connectivity=4)
        mask = labels[1:-1, 1:-1] != labels[0, 0]
    return mask


def check_mask(p_hand: np.ndarray) -> MaskCheck:
    """Checks a mask by its shape and by the probabilities that it was made from.

    The confidence is the expected Dice if every pixel were drawn with its probability:
    2 sum(p m) / (sum(p) + sum(m)) for the thresholded mask m.

    Args:
      p_hand: uint8 [H, W], probability times 255.
    """
    mask = p_hand > 127
    p = p_hand.astype(np.float32) / 255
    total = float(p.sum() + mask.sum())
    confidence = 2 * float(p[mask].sum()) / total if mask.any() else 0.0
    count, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    sizes = stats[1:count, cv2.CC_STAT_AREA]
    parts = int((sizes > _PART * sizes.max()).sum()) if len(sizes) else 0
    edges = (mask[0], mask[-1], mask[:, 0], mask[:, -1])
    sides = sum(bool(edge.mean() > _TOUCH) for edge in edges)
    area = float(mask.mean())
    reasons = []
    if not mask.any():
        reasons.append("no hand found")
    elif area < AREA[0]:
        reasons.append(f"small: {area:.0%} of the image")
    elif area > AREA[1]:
        reasons.append(f"large: {area:.0%} of the image")
    if parts > 1:
        reasons.append(f"{parts} separate parts")
    if sides > SIDES:
        reasons.append(f"touches {sides} sides")
    if mask.any() and confidence < CONFIDENCE:
        reasons.append(f"uncertain: expected Dice {confidence:.3f}")
    return MaskCheck(area, parts, sides, confidence, tuple(reasons))


def cut_padding(square: np.ndarray, height: int, width: int, fit: str = "pad") -> np.ndarray:
    """Returns the part of a square [S, S] that `fit_square` filled with an image.

    Args:
      square: the square.
      height: height of the image before `fit_square`.
      width: width of the image before `fit_square`.
      fit: how `fit_square` did it.
    """
    top, left, inner_height, inner_width = placement(height, width, square.shape[0], fit)
    return square[top : top + inner_height, left : left + inner_width]


def unfit(square: np.ndarray, height: int, width: int, fit: str = "pad") -> np.ndarray:
    """Undoes `fit_square`: removes the padding and resizes to [height, width], bilinear."""
    inner = cut_padding(square, height, width, fit)
    return cv2.resize(inner, (width, height), interpolation=cv2.INTER_LINEAR)


def remove_background(image: np.ndarray, mask: np.ndarray, mode: str, size: int) -> np.ndarray:
    """Returns a radiograph without its background, fitted into a square.

    Args:
      image: uint8 [H, W].
      mask: bool [H, W]; if it is empty, the image keeps its background.
      mode: 'multiply' sets the background to black. 'crop' also stretches the hand's grey levels,
        from its 1st percentile (24) to its 99th (255), and crops to its box with a margin of 3 %.
        'upright' also turns the hand's long axis upright.
      size: side of the square, pixels.

    Returns:
      uint8 [size, size].

    Raises:
      ValueError: the mask is not bool [H, W], or the mode is unknown.
    """
    if mask.shape != image.shape or mask.dtype != bool or mode not in MODES:
        raise ValueError(
            f"need a bool mask {image.shape} and a mode of {MODES}; got {mask.dtype} {mask.shape}, "
            f"{mode!r}"
        )
    if not mask.any():
        return fit_square(image, size)
    image = np.where(mask, image, np.uint8(0))
    if mode == "multiply":
        return fit_square(image, size)
    box = _box(mask)
    image, mask = image[box], mask[box]
    image = _stretch(image, mask)
    if mode == "upright" and (angle := tilt(mask)):
        image, mask = _turn(image, angle), _turn(mask.astype(np.uint8) * 255, angle) > 0
        if mask.any():  # a mask of a few pixels can vanish in the rotation
            image = image[_box(mask)]
    margin = math.ceil(_MARGIN * max(image.shape))
    return fit_square(np.pad(image, margin), size)


def _stretch(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Stretches the grey levels of the hand; black is left to the background."""
    low, high = np.percentile(image[mask], (1, 99))
    if high <= low:
        return image
    levels = np.arange(256, dtype=np.float32)
    curve = _DARKEST + (levels - low) * (255 - _DARKEST) / (high - low)
    return np.where(mask, np.clip(np.rint(curve), _DARKEST, 255).astype(np.uint8)[image], 0)


def _box(mask: np.ndarray) -> tuple[slice, slice]:
    """Returns the bounding box of a mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def tilt(mask: np.ndarray) -> float:
    """Returns the tilt of a mask's long axis in degrees to the right of upright, in (-90, 90].

    The axis is that of the second moments. 0 if the mask is nearly round.
    """
    moments = cv2.moments(mask.astype(np.uint8), binaryImage=True)
    xx, yy, xy = moments["mu20"], moments["mu02"], moments["mu11"]
    spread = math.hypot(xx - yy, 2 * xy)
    if xx + yy + spread < _UPRIGHT_MIN**2 * (xx + yy - spread):
        return 0.0
    # The long axis has the angle atan2(2 xy, xx - yy) / 2 from x towards y, which points down.
    angle = math.degrees(math.atan2(2 * xy, xx - yy) / 2)
    return 90 + angle if angle <= 0 else angle - 90


def _turn(image: np.ndarray, degrees: float) -> np.ndarray:
    """Rotates counter-clockwise, on a canvas that holds everything; black outside."""
    height, width = image.shape
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    cos, sin = abs(matrix[0, 0]), abs(matrix[0, 1])
    new_width, new_height = (
        math.ceil(width * cos + height * sin),
        math.ceil(width * sin + height * cos),
    )
    matrix[:, 2] += ((new_width - width) / 2, (new_height - height) / 2)
    return cv2.warpAffine(image, matrix, (new_width, new_height), flags=cv2.INTER_LINEAR)

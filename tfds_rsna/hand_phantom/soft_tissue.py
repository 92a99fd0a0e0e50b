"""Soft tissue of a hand: its outline and its thickness."""

import cv2
import numpy as np

from tfds_rsna.hand_phantom.pose import Canvas
from tfds_rsna.hand_phantom.skeleton import Skeleton


def draw_silhouette(skeleton: Skeleton, canvas: Canvas) -> np.ndarray:
    """Draws the outline of the hand: fingers as cones between joints, palm and arm as a polygon.

    Returns:
      uint8 [side, side], 0 ... 255 with a soft edge.
    """
    hand = np.zeros((canvas.side, canvas.side), np.uint8)
    wide = skeleton.tissue
    for finger, path in enumerate(skeleton.fingers):
        stout = (1.10, 1.0, 1.02, 0.97, 0.86)[finger] * wide
        along = (path[-1] - path[-2]) / np.linalg.norm(path[-1] - path[-2])
        joints = np.concatenate([path[1:-1], (path[-1] - 0.010 * along)[None]])
        # Thick at the base, thinner towards the tip.
        radii = np.linspace(0.044, 0.029, len(joints)) * stout
        for joint, radius in zip(joints, radii, strict=True):
            canvas.disc(hand, joint, float(radius))
        for k in range(len(joints) - 1):
            start, end = joints[k], joints[k + 1]
            normal = np.array([start[1] - end[1], end[0] - start[0]]) / np.linalg.norm(end - start)
            beside = [radii[k] * normal, radii[k + 1] * normal]
            cone = [start + beside[0], end + beside[1], end - beside[1], start - beside[0]]
            canvas.fill(hand, np.array(cone))
    canvas.fill(hand, _palm(skeleton, wide))
    # Blurring and thresholding at one half rounds the corners: webs, wrist, thenar.
    smooth = cv2.GaussianBlur(hand, (0, 0), 0.011 * canvas.unit)
    edge = 24.0 / max(0.011 * canvas.unit, 1.0)
    return cv2.convertScaleAbs(np.clip((smooth.astype(np.float32) - 127.5) * edge + 127.5, 0, 255))


def _palm(skeleton: Skeleton, wide: float) -> np.ndarray:
    knuckles = [path[1] for path in skeleton.fingers]
    thumb = skeleton.fingers[0]
    across = np.array([1.0, 0.0])
    forward = np.array([0.0, 1.0])
    forearm = np.array([[0.150, -0.50], [0.165, -1.30], [-0.165, -1.30], [-0.145, -0.50]])
    return np.concatenate(
        [
            [knuckles[1] + across * 0.046 * wide + forward * 0.03],
            [knuckles[1] + across * 0.050 * wide - forward * 0.07],
            [0.55 * knuckles[1] + 0.45 * thumb[1] + np.array([-0.004, -0.045])],
            [thumb[1] + np.array([-0.030, 0.036]) * wide],
            [thumb[1] + np.array([0.034, -0.032]) * wide],
            [thumb[0] + np.array([0.040, -0.030]) * wide],
            [[0.128 * wide, 0.035], [0.118 * wide, -0.05], [0.128 * wide, -0.20]],
            forearm * [wide, 1.0],
            [[-0.126 * wide, -0.20], [-0.116 * wide, -0.05], [-0.132 * wide, 0.04]],
            [knuckles[4] * [1.0, 0.45] - across * 0.036 * wide],
            [knuckles[4] - across * 0.040 * wide],
            [knuckles[4] - across * 0.034 * wide + forward * 0.05],
            [knuckles[3] + forward * 0.060, knuckles[2] + forward * 0.068],
            [knuckles[1] + forward * 0.062],
        ]
    )


def tissue_thickness(hand: np.ndarray, canvas: Canvas) -> np.ndarray:
    """Returns the thickness of soft tissue: round in section, thicker in the palm than in fingers.

    Args:
      hand: silhouette from `draw_silhouette`.
      canvas: canvas of the silhouette.

    Returns:
      float32 [side, side], about 0.7 in a finger and 1.2 in the palm.
    """
    side = canvas.side
    small = max(side // 4, 32)
    depth = cv2.distanceTransform((hand > 127).astype(np.uint8), cv2.DIST_L2, 3)
    within = np.minimum(depth / (0.044 * canvas.unit), 1.0)
    rounded = np.sqrt(within * (2 - within))
    bulk = cv2.resize(hand, (small, small), interpolation=cv2.INTER_AREA)
    bulk = cv2.GaussianBlur(bulk, (0, 0), 0.085 * small * canvas.unit / side)
    bulk = cv2.resize(bulk, (side, side), interpolation=cv2.INTER_LINEAR).astype(np.float32) / 255
    blurred = cv2.GaussianBlur(rounded, (0, 0), max(0.003 * side, 0.4))
    return blurred * (0.45 + 0.75 * bulk)

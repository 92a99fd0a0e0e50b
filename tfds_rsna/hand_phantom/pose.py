"""Position of a hand in the frame, and the map from its lengths to pixels."""

import dataclasses
import functools

import cv2
import numpy as np

_SHIFT = 4  # fractional bits of OpenCV's sub-pixel coordinates


@dataclasses.dataclass(frozen=True)
class Canvas:
    """A square of pixels, and the affine map from hand units to it.

    Attributes:
      side: side in pixels.
      matrix: float64 [2, 3], maps hand units (with a third coordinate 1) to pixels; (0, 0) is the
        centre of the first pixel.
    """

    side: int
    matrix: np.ndarray

    @property
    def unit(self) -> float:
        """Pixels per hand unit."""
        return float(np.hypot(*self.matrix[:, 0]))

    @functools.cached_property
    def inverse(self) -> np.ndarray:
        """Maps differences in pixels to hand units, float64 [2, 2]."""
        return np.linalg.inv(self.matrix[:, :2])

    def place(self, points: np.ndarray) -> np.ndarray:
        """Maps hand units [n, 2] to pixels [n, 2]."""
        return points @ self.matrix[:, :2].T + self.matrix[:, 2]

    def fill(self, image: np.ndarray, points: np.ndarray) -> None:
        """Fills a polygon, in hand units [n, 2], with 255."""
        fixed = np.rint(self.place(points) * (1 << _SHIFT)).astype(np.int32)
        cv2.fillPoly(image, [fixed], 255, cv2.LINE_AA, _SHIFT)

    def disc(self, image: np.ndarray, centre: np.ndarray, radius: float) -> None:
        """Fills a disc, in hand units, with 255."""
        x, y = np.rint(self.place(centre) * (1 << _SHIFT)).astype(int).tolist()
        pixels = round(radius * self.unit * (1 << _SHIFT))
        cv2.circle(image, (x, y), pixels, 255, -1, cv2.LINE_AA, _SHIFT)


@dataclasses.dataclass(frozen=True)
class Pose:
    """Position of the hand in a frame of side 1.

    Attributes:
      scale: length of one hand unit.
      angle: rotation in degrees.
      x: horizontal position of the middle of the hand.
      y: vertical position of the middle of the hand.
      left: a left hand, palm down: the thumb is on the right.
    """

    scale: float
    angle: float
    x: float
    y: float
    left: bool

    def canvas(self, side: int) -> Canvas:
        """Returns the canvas of this pose in a square of `side` pixels."""
        turn = np.deg2rad(self.angle)
        cos, sin = np.cos(turn) * self.scale * side, np.sin(turn) * self.scale * side
        flip = 1.0 if self.left else -1.0
        linear = np.array([[cos * flip, sin], [sin * flip, -cos]])
        # 0.33 is halfway from the forearm to the fingertips.
        offset = np.array([self.x, self.y]) * side - 0.5 - linear @ np.array([0.0, 0.33])
        return Canvas(side, np.column_stack([linear, offset]))


def draw_pose(rng: np.random.Generator) -> Pose:
    """Draws a pose. The scale is independent of age: small and large hands fill the frame alike."""
    return Pose(
        scale=float(rng.uniform(0.66, 0.98)),
        angle=float(np.clip(rng.normal(0, 8), -20, 20)),
        x=float(rng.normal(0.49, 0.03)),
        y=float(rng.normal(0.50, 0.025)),
        left=bool(rng.random() < 0.75),
    )

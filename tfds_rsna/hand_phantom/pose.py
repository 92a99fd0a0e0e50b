"""Where a hand lies in the frame, and how its lengths become pixels."""

import dataclasses

import cv2
import numpy as np

_SHIFT = 4  # bits of sub-pixel position that OpenCV draws with


@dataclasses.dataclass(frozen=True)
class Canvas:
    """A square of pixels, and the affine map from hand units to it.

    Attributes:
      side: in pixels.
      matrix: float64 [2, 3], hand units (a third 1 appended) to pixels; (0, 0) is the middle of
        the first pixel.
    """

    side: int
    matrix: np.ndarray

    @property
    def unit(self) -> float:
        """Pixels per hand unit."""
        return float(np.hypot(*self.matrix[:, 0]))

    def place(self, points: np.ndarray) -> np.ndarray:
        """Hand units [n, 2] to pixels [n, 2]."""
        return points @ self.matrix[:, :2].T + self.matrix[:, 2]

    def fill(self, image: np.ndarray, points: np.ndarray) -> None:
        """Fills a polygon of hand units [n, 2] with 255."""
        fixed = np.rint(self.place(points) * (1 << _SHIFT)).astype(np.int32)
        cv2.fillPoly(image, [fixed], 255, cv2.LINE_AA, _SHIFT)

    def disc(self, image: np.ndarray, centre: np.ndarray, radius: float) -> None:
        """Fills a disc, given in hand units, with 255."""
        x, y = np.rint(self.place(centre) * (1 << _SHIFT)).astype(int).tolist()
        pixels = round(radius * self.unit * (1 << _SHIFT))
        cv2.circle(image, (x, y), pixels, 255, -1, cv2.LINE_AA, _SHIFT)


@dataclasses.dataclass(frozen=True)
class Pose:
    """Where the hand lies in a frame of side 1.

    Attributes:
      scale: length of one hand unit.
      angle: degrees of rotation.
      x, y: where the middle of the hand lies.
      left: a left hand, palm down: the thumb is to the right.
    """

    scale: float
    angle: float
    x: float
    y: float
    left: bool

    def canvas(self, side: int) -> Canvas:
        """This pose in a square of `side` pixels."""
        turn = np.deg2rad(self.angle)
        cos, sin = np.cos(turn) * self.scale * side, np.sin(turn) * self.scale * side
        flip = 1.0 if self.left else -1.0
        linear = np.array([[cos * flip, sin], [sin * flip, -cos]])
        # 0.33 is halfway from the forearm to the fingertips.
        offset = np.array([self.x, self.y]) * side - 0.5 - linear @ np.array([0.0, 0.33])
        return Canvas(side, np.column_stack([linear, offset]))


def draw_pose(rng: np.random.Generator) -> Pose:
    """Draws a pose. Scale tells nothing of the age: small and large hands fill the frame alike."""
    return Pose(
        scale=float(rng.uniform(0.66, 0.98)),
        angle=float(np.clip(rng.normal(0, 8), -20, 20)),
        x=float(rng.normal(0.49, 0.03)),
        y=float(rng.normal(0.50, 0.025)),
        left=bool(rng.random() < 0.75),
    )

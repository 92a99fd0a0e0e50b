"""How much an age changes under flips and small turns of the radiograph, which change no bone."""

from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from boneage_jax.inference.predictor import Predictor

TURNS = (-10, -5, 5, 10)  # degrees, anticlockwise


def stressed_ages(
    predictor: "Predictor", square: np.ndarray, male: int, proportions: float
) -> dict[str, float]:
    """Returns the bone age in months of each variant of a radiograph, by its name.

    Args:
      predictor: the network for bone age.
      square: an image from `Predictor.fit`, uint8 [S, S].
      male: 1, 0 or -1 for unknown.
      proportions: see `Predictor.proportions`.
    """
    variants = {"as it is": square, "mirrored": np.ascontiguousarray(square[:, ::-1])}
    for degrees in TURNS:
        variants[f"turned by {degrees:+d}°"] = turned(square, degrees, proportions)
    ages = predictor.read([*variants.values()], [male] * len(variants))["bone_age_months"]
    return dict(zip(variants, map(float, ages), strict=True))


def turned(square: np.ndarray, degrees: float, proportions: float = 1.0) -> np.ndarray:
    """Turns an image about its centre, as it looks at a width of `proportions` times its height.

    Args:
      square: uint8 [S, S].
      degrees: anticlockwise; the border fills what comes in.
      proportions: width over height at which the image is undistorted.
    """
    middle = (square.shape[0] - 1) / 2
    turn = cv2.getRotationMatrix2D((0, 0), degrees, 1.0)[:, :2]
    turn = turn * np.array([[1, 1 / proportions], [proportions, 1]])
    offset = middle - turn @ np.array([middle, middle])
    return cv2.warpAffine(
        square,
        np.column_stack([turn, offset]),
        square.shape[::-1],
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )

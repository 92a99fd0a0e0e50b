"""Radiographs as other departments would send them: turned, exposed, compressed and framed.

`STRESSES` is the table of an evaluation under stress. A mild stress leaves all that a reader needs;
after a severe one the radiograph must be put right or rejected.
"""

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

from boneage_jax.inference.view import turn

_FRAME = 0.06  # width of a white frame, in sides of the image
_NOISE = 12.0  # standard deviation in grey levels
_QUALITY = 30  # of a JPEG
_BLUR = 0.004  # standard deviation in sides of the image: 2.6 pixels of 640

Draw = Callable[[np.ndarray, np.random.Generator], np.ndarray]


class Stress(NamedTuple):
    """A change of radiographs.

    Attributes:
      draw: makes uint8 [H', W'] of uint8 [H, W], with its own random numbers.
      severe: whether the result is no longer a radiograph as it should be.
    """

    draw: Draw
    severe: bool


def rotated(image: np.ndarray, degrees: float) -> np.ndarray:
    """Turns an image counter-clockwise about its centre, on a canvas of its size, black outside.

    Quarter turns are exact and swap height and width.

    Args:
      image: uint8 [H, W].
      degrees: the angle.
    """
    if degrees % 90 == 0:
        return turn(image, round(degrees / 45))
    height, width = image.shape
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1)
    return cv2.warpAffine(image, matrix, (width, height))


def gamma(power: float) -> Draw:
    """Returns the change of grey levels, as fractions of the full range, to that power."""
    levels = np.rint(255 * (np.arange(256) / 255) ** power).astype(np.uint8)
    return lambda image, rng: levels[image]


def _turned(degrees: float) -> Draw:
    return lambda image, rng: rotated(image, degrees)


def _jpeg(image: np.ndarray) -> np.ndarray:
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE))


def _noisy(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    noise = rng.normal(0, _NOISE, image.shape)
    return np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)


def _framed(image: np.ndarray) -> np.ndarray:
    width = round(_FRAME * max(image.shape))
    return cv2.copyMakeBorder(image, *(width,) * 4, cv2.BORDER_CONSTANT, value=255)


def _marked(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Places a lead letter in an upper corner."""
    image = image.copy()
    height = 0.1 * image.shape[0]
    left = 0.04 if rng.random() < 0.5 else 0.86
    at = (round(left * image.shape[1]), round(0.04 * image.shape[0] + height))
    thick = max(1, round(height / 8))
    cv2.putText(image, "RL"[rng.integers(2)], at, 0, height / 24, 250, thick, cv2.LINE_AA)
    return image


def _cornered(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shrinks an image to half its size, in a corner of a black picture of its own size."""
    height, width = image.shape
    small = cv2.resize(image, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    picture = np.zeros_like(image)
    top, left = rng.integers(2) * (height - height // 2), rng.integers(2) * (width - width // 2)
    picture[top : top + height // 2, left : left + width // 2] = small
    return picture


def _halved(image: np.ndarray) -> np.ndarray:
    height, width = image.shape
    return cv2.resize(image, (width // 2, height // 2), interpolation=cv2.INTER_AREA)


STRESSES: dict[str, Stress] = {
    "untouched": Stress(lambda image, rng: image, False),
    "mirrored": Stress(lambda image, rng: np.ascontiguousarray(image[:, ::-1]), False),
    "turned by 10": Stress(_turned(10), False),
    "turned by -10": Stress(_turned(-10), False),
    "gamma 0.5": Stress(gamma(0.5), False),
    "gamma 0.7": Stress(gamma(0.7), False),
    "gamma 1.4": Stress(gamma(1.4), False),
    "gamma 2": Stress(gamma(2.0), False),
    "JPEG quality 30": Stress(lambda image, rng: _jpeg(image), False),
    "blurred": Stress(
        lambda image, rng: cv2.GaussianBlur(image, (0, 0), _BLUR * max(image.shape)), False
    ),
    "half resolution": Stress(lambda image, rng: _halved(image), False),
    "noise of sd 12": Stress(_noisy, False),
    "white frame": Stress(lambda image, rng: _framed(image), False),
    "marker": Stress(_marked, False),
    **{f"turned by {angle}": Stress(_turned(angle), True) for angle in range(45, 360, 45)},
    "inverted": Stress(lambda image, rng: 255 - image, True),
    "turned by 90, inverted": Stress(lambda image, rng: rotated(255 - image, 90), True),
    "half size in a corner": Stress(_cornered, True),
    "doubled": Stress(lambda image, rng: np.concatenate([image, image[:, ::-1]], 1), True),
}

"""What the validation split teaches about predictions on new radiographs.

How ages are to be corrected; how wide an interval must be to hold the true age (split conformal
prediction, Vovk et al. 2005: the quantile of absolute validation errors); and how far the
statistics of a new image may lie from those of the validation images before it is called no hand
radiograph. These statistics are of the image, not of the network: pooled features of a network
trained on hands alone put noise and plain gradients right among the hands.
"""

import dataclasses
import io
import math
import zipfile
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from boneage_jax.errors import InputError
from boneage_jax.inference.bias_correction import Correction, cross_fitted

_COVERAGE = 0.95
_MARGIN = 1.25  # times the largest distance of a validation image
_SIDE = 128  # pixels at which statistics are taken, whatever the network reads
_COARSEST = 8


def image_statistics(image: np.ndarray) -> np.ndarray:
    """How much an image varies at each scale, and how sparsely; float64 [10].

    Of each level of a Laplacian pyramid (Burt & Adelson 1983) of the standardised image: the
    logarithm of the standard deviation, and of the mean absolute value over it. Brightness,
    contrast and inversion do not matter.

    Args:
      image: uint8 [S, S].
    """
    x = cv2.resize(image.astype(np.float32), (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    x = (x - x.mean()) / max(float(x.std()), 1.0)
    numbers = []
    while x.shape[0] > _COARSEST:
        smaller = cv2.pyrDown(x)
        band = x - cv2.pyrUp(smaller, dstsize=x.shape[::-1])
        spread = float(band.std()) + 1e-3
        numbers += [math.log(spread), math.log((float(np.abs(band).mean()) + 1e-4) / spread)]
        x = smaller
    # The floor makes a blank image a far one, and keeps it from being infinitely far.
    numbers += [math.log(float(x.std()) + 1e-3), float(np.abs(x).mean() / (x.std() + 1e-3))]
    return np.asarray(numbers)


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Measured on the validation split.

    Attributes:
      half_width: months; 95 % of new radiographs lie within corrected prediction ± half_width.
      mean: float64 [10], of `image_statistics`.
      precision: float64 [10, 10], inverse of their covariance.
      max_distance: above it an image is not accepted.
      correction: of predicted ages.
    """

    half_width: float
    mean: np.ndarray
    precision: np.ndarray
    max_distance: float
    correction: Correction = dataclasses.field(default_factory=Correction)

    @classmethod
    def fit(
        cls,
        predicted: np.ndarray,
        true: np.ndarray,
        images: Iterable[np.ndarray],
        method: str = "none",
    ) -> "Calibration":
        """From what a network says of a split that it was not trained on.

        Args:
          predicted, true: months [n], uncorrected predictions and true ages.
          images: uint8 [S, S] each, in any order.
          method: of the correction, see `boneage_jax.inference.bias_correction`.
        """
        correction = Correction.fit(predicted, true, method)
        predicted = cross_fitted(predicted, true, method)
        errors = np.sort(np.abs(predicted.astype(np.float64) - true))
        # The finite-sample quantile; with fewer than 19 images it is the largest error.
        rank = min(math.ceil(_COVERAGE * (len(errors) + 1)), len(errors)) - 1
        seen = np.stack([image_statistics(image) for image in images])
        covariance = np.cov(seen.T) if len(seen) > 1 else np.eye(seen.shape[1])
        # Shrunk a little towards a sphere: a few images do not span every direction.
        covariance += np.eye(len(covariance)) * (
            0.01 * np.trace(covariance) / len(covariance) + 1e-6
        )
        fitted = cls(float(errors[rank]), seen.mean(0), np.linalg.inv(covariance), 0.0, correction)
        largest = float(fitted._of(seen).max())
        return dataclasses.replace(fitted, max_distance=_MARGIN * largest)

    def distance(self, images: Iterable[np.ndarray]) -> np.ndarray:
        """Mahalanobis distance of images, uint8 [S, S] each, from the validation images; [n]."""
        return self._of(np.stack([image_statistics(image) for image in images]))

    def _of(self, statistics: np.ndarray) -> np.ndarray:
        away = statistics - self.mean
        return np.sqrt(np.einsum("ni,ij,nj->n", away, self.precision, away))

    def save(self, path: Path) -> None:
        """Writes a .npz of plain arrays."""
        arrays = dataclasses.asdict(self)
        np.savez(path, **arrays.pop("correction"), **arrays)

    @classmethod
    def load(cls, path: Path) -> "Calibration":
        """Reads what `save` wrote; nothing in the file is executed.

        Raises:
          InputError: the file is missing or damaged.
        """
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
                correction = (
                    Correction(float(stored["slope"]), float(stored["intercept"]))
                    if "slope" in stored
                    else Correction()  # written before ages were corrected
                )
                return cls(
                    float(stored["half_width"]),
                    stored["mean"],
                    stored["precision"],
                    float(stored["max_distance"]),
                    correction,
                )
        except FileNotFoundError:
            raise InputError(
                f"{path} is missing: the training in this workdir has not ended; start it again"
            ) from None
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(
                f"{path} is damaged ({error}); remove it and report.json and run main again"
            ) from error

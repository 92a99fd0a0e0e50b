"""What predictions on the validation split teach about predictions on new radiographs.

Two things: how wide an interval must be to hold the true age (split conformal prediction, Vovk et
al. 2005: the quantile of absolute validation errors), and how far from the validation images the
features of a new image may lie before it is called no hand radiograph (mean squared z-score per
feature, a diagonal Mahalanobis distance).
"""

import dataclasses
import math
import zipfile
from pathlib import Path

import numpy as np

from boneage_jax.errors import InputError

_COVERAGE = 0.95
_MARGIN = 1.5  # times the largest distance of a validation image


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Measured on the validation split.

    Attributes:
      half_width: months; 95 % of new radiographs lie within prediction ± half_width.
      feature_mean, feature_std: float32 [F], of the pooled features.
      max_distance: above it an image is not accepted.
    """

    half_width: float
    feature_mean: np.ndarray
    feature_std: np.ndarray
    max_distance: float

    @classmethod
    def fit(cls, predicted: np.ndarray, true: np.ndarray, features: np.ndarray) -> "Calibration":
        """From predictions and true ages [n] in months and features [n, F] of a split."""
        errors = np.sort(np.abs(predicted.astype(np.float64) - true))
        # The finite-sample quantile; with fewer than 19 images it is the largest error.
        rank = min(math.ceil(_COVERAGE * (len(errors) + 1)), len(errors)) - 1
        mean = features.mean(0, dtype=np.float64)
        std = np.maximum(features.std(0, dtype=np.float64), 1e-3)
        fitted = cls(float(errors[rank]), mean.astype(np.float32), std.astype(np.float32), 0.0)
        largest = float(fitted.distance(features).max())
        return dataclasses.replace(fitted, max_distance=_MARGIN * largest)

    def distance(self, features: np.ndarray) -> np.ndarray:
        """Mean squared z-score of features [n, F]; about 1 for images like those seen."""
        return np.mean(((features - self.feature_mean) / self.feature_std) ** 2, axis=-1)

    def save(self, path: Path) -> None:
        """Writes a .npz of plain arrays."""
        np.savez(path, **dataclasses.asdict(self))

    @classmethod
    def load(cls, path: Path) -> "Calibration":
        """Reads what `save` wrote; nothing in the file is executed.

        Raises:
          InputError: the file is missing or damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                return cls(
                    float(stored["half_width"]),
                    stored["feature_mean"],
                    stored["feature_std"],
                    float(stored["max_distance"]),
                )
        except FileNotFoundError:
            raise InputError(
                f"{path} is missing: the training in this workdir has not ended; start it again"
            ) from None
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(
                f"{path} is damaged ({error}); remove it and run main again"
            ) from error

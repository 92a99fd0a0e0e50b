"""Calibrates predictions on new radiographs with the validation split.

Determines the correction of ages; the width of an interval that contains the true age (split
conformal prediction, Vovk et al. 2005: the quantile of absolute validation errors); the range of
ages that a prediction can have; and how far the statistics of a new image may be from those of the
radiographs of training before it is rejected as not a hand radiograph. The statistics are of the
image, not of the network: pooled features of a network trained only on hands place noise and plain
gradients among the hands. So images that the network was trained on serve as well as others. A view
network (`boneage_jax.inference.view`) judges beside them, where training had enough images for one.
"""

import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from boneage_jax.inference.atlas_ages import AtlasAges
from boneage_jax.inference.bias_correction import Correction, cross_fitted
from boneage_jax.inference.calibration_file import read_fields, write_fields
from boneage_jax.inference.view import View

_COVERAGE = 0.95
_MIN_SLOPED = 100  # images; fewer do not tell how the error depends on the age
_SCALES = 0.5, 2.0  # bounds of a width in units of the one at the centre
# Of 902 radiographs these reject 0.3 to 1.2 % of those not fitted to, for 30 to 512 images.
_ACCEPTED = 0.99  # quantile of the distances of images that the statistics are fitted without
_MARGIN = 1.1  # times that quantile
_MARGIN_WITH_VIEW = 1.4  # noise and exposure raise the distance, and the view network judges too
_SHRINKAGE = 0.2  # of the covariance towards its diagonal
MIN_IMAGES = 30  # fewer reject up to 12 % of the radiographs
_SIDE = 128  # side in pixels for statistics, whatever size the network reads
_COARSEST = 8


def image_statistics(image: np.ndarray) -> np.ndarray:
    """Measures how much an image varies at each scale, and how sparsely; float64 [10].

    For each level of a Laplacian pyramid (Burt & Adelson 1983) of the standardised image: the log
    of the standard deviation, and the log of the mean absolute value divided by it (no log at the
    coarsest level). Invariant to brightness, contrast and inversion.

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
    # The floor keeps the distance of a blank image large but finite.
    numbers += [math.log(float(x.std()) + 1e-3), float(np.abs(x).mean() / (x.std() + 1e-3))]
    return np.asarray(numbers)


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Calibration of a network, measured on the validation split.

    Attributes:
      half_width: months; the interval corrected prediction ± `half_widths` contains the true age of
        95 % of new radiographs. This is the one at `centre`.
      mean: float64 [10], mean of `image_statistics`.
      precision: float64 [10, 10], inverse of their covariance.
      max_distance: Mahalanobis distance above which an image is not accepted; infinite if there
        were too few images to tell.
      correction: correction of predicted ages.
      atlas: moves corrected ages to those that readers write down; None leaves them.
      youngest, oldest: ages of the training split in months; NaN in files of older versions, which
        did not record them.
      images: number of images that the half-width was measured on; 0 if not recorded.
      tilt, centre: the half-width grows by `tilt` of itself per month above `centre`.
      view: puts images right and judges them; None in files of older versions, and where there were
        too few images to fit one.
    """

    half_width: float
    mean: np.ndarray
    precision: np.ndarray
    max_distance: float
    correction: Correction = dataclasses.field(default_factory=Correction)
    atlas: AtlasAges | None = None
    youngest: float = math.nan
    oldest: float = math.nan
    images: int = 0
    tilt: float = 0.0
    centre: float = 0.0
    view: View | None = None

    @classmethod
    def fit(
        cls,
        predicted: np.ndarray,
        true: np.ndarray,
        images: Iterable[np.ndarray],
        method: str = "none",
        *,
        training_ages: np.ndarray | None = None,
        view: View | None = None,
        atlas: AtlasAges | None = None,
        p_male: np.ndarray | None = None,
    ) -> "Calibration":
        """Fits a calibration to predictions on a split that the network was not trained on.

        Args:
          predicted, true: months [n], uncorrected predictions and true ages.
          images: uint8 [S, S] each, radiographs of the data set in any order; those of training
            count too.
          method: method of the correction, see `boneage_jax.inference.bias_correction`.
          training_ages: months, ages of the training split.
          view: a fitted view network.
          atlas: the ages that readers write down.
          p_male: probability of the male sex [n], needed with `atlas`.

        Raises:
          ValueError: `atlas` without `p_male`, or see `Correction.fit`.
        """
        if atlas and p_male is None:
            raise ValueError("an atlas needs p_male")
        correction = Correction.fit(predicted, true, method)
        predicted = cross_fitted(predicted, true, method)
        predicted = predicted.astype(np.float64)
        predicted = atlas(predicted, p_male) if atlas else predicted
        errors = np.abs(predicted - true)
        tilt, centre = _tilt(predicted, errors)
        seen = np.stack([image_statistics(image) for image in images])
        away = seen - seen.mean(0)
        covariance = away.T @ away / max(len(seen) - 1, 1)
        ages = np.asarray([math.nan] if training_ages is None else training_ages, np.float64)
        enough, margin = len(seen) >= MIN_IMAGES, _MARGIN_WITH_VIEW if view else _MARGIN
        return cls(
            # With fewer than 19 images the largest error.
            _quantile(errors / _scale(predicted, tilt, centre), _COVERAGE),
            seen.mean(0),
            np.linalg.inv(_shrunk(covariance)),
            margin * _quantile(_left_out_distances(seen), _ACCEPTED) if enough else math.inf,
            correction,
            atlas,
            float(ages.min()),
            float(ages.max()),
            len(errors),
            tilt,
            centre,
            view,
        )

    def ages(self, predicted: Any, p_male: Any) -> Any:
        """Returns corrected ages as readers would write them down, whether possible or not, [n].

        Args:
          predicted: what the network reads, in months [n], of NumPy or JAX.
          p_male: probability of the male sex [n], see `AtlasAges`.
        """
        return self.moved(self.correction(predicted), p_male)

    def moved(self, ages: Any, p_male: Any) -> Any:
        """Returns corrected ages as readers would write them down, if there is an atlas, [n]."""
        return self.atlas(ages, p_male) if self.atlas else ages

    @property
    def judges_images(self) -> bool:
        """Whether `max_distance` tells radiographs of a hand from other images."""
        return math.isfinite(self.max_distance)

    @property
    def coverage(self) -> float:
        """Fraction of new radiographs whose age the interval contains; 0.95 unless few images."""
        return min(self.images / (self.images + 1), _COVERAGE) if self.images else _COVERAGE

    def distance(self, images: Iterable[np.ndarray]) -> np.ndarray:
        """Returns the Mahalanobis distance of images from those that were fitted to, [n].

        Args:
          images: uint8 [S, S] each.
        """
        away = np.stack([image_statistics(image) for image in images]) - self.mean
        return np.sqrt(np.einsum("ni,ij,nj->n", away, self.precision, away))

    def half_widths(self, ages: np.ndarray) -> np.ndarray:
        """Returns half of the width of the interval around corrected predictions, in months.

        Errors grow or shrink with the age. Dividing them by a linear fit of their size before the
        quantile is taken (Lei et al. 2018) makes the coverage more even over the ages.
        """
        return self.half_width * _scale(ages, self.tilt, self.centre)

    def possible(self, ages: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Moves ages to the nearest that the network can know of.

        These are the ages of training and as many months beyond them as the interval is wide to
        each side; no age is below 0. Without recorded ages of training that is the only bound.

        Args:
          ages: corrected predictions in months, [n], of NumPy or JAX.

        Returns:
          (ages, bool: whether each was within the range but for a negative sign).
        """
        low, high = self.bounds
        if math.isnan(low + high):
            return ages.clip(0), abs(ages) < math.inf
        return ages.clip(max(low, 0), high), (ages >= low) & (ages <= high)

    @property
    def bounds(self) -> tuple[float, float]:
        """Least and greatest age that the network can know of, in months; NaN if not recorded."""
        ends = np.array([self.youngest, self.oldest])
        low, high = ends + np.array([-1, 1]) * self.half_widths(ends)
        return float(low), float(high)

    def interval(self, ages: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the lower and upper ends of the intervals around ages from `possible`, [n]."""
        half, greatest = self.half_widths(ages), self.bounds[1]
        high = ages + half
        return (ages - half).clip(0), high if math.isnan(greatest) else high.clip(None, greatest)

    def save(self, path: Path) -> None:
        """Writes an .npz file of plain arrays, atomically."""
        write_fields(path, dataclasses.asdict(self))

    @classmethod
    def load(cls, path: Path) -> "Calibration":
        """Reads a file written by `save`; nothing in it is executed.

        Raises:
          InputError: the file is missing or damaged.
        """
        return cls(**read_fields(path))


def _quantile(values: np.ndarray, fraction: float) -> float:
    """Returns the finite-sample quantile: a new value is below it with that probability or more.

    The largest value, where there are too few for that.
    """
    rank = min(math.ceil(fraction * (len(values) + 1)), len(values)) - 1
    return float(np.sort(values)[rank])


def _tilt(predicted: np.ndarray, errors: np.ndarray) -> tuple[float, float]:
    """Returns the relative change of the size of errors per month of age, and the mean age."""
    centre, size = float(predicted.mean()), float(errors.mean())
    if len(errors) < _MIN_SLOPED or not predicted.std() or not size:
        return 0.0, centre
    return float(np.cov(predicted, errors)[0, 1] / predicted.var(ddof=1) / size), centre


def _scale(ages: np.ndarray, tilt: float, centre: float) -> np.ndarray:
    return (1 + tilt * (ages - centre)).clip(*_SCALES)


def _shrunk(covariance: np.ndarray) -> np.ndarray:
    """Shrinks covariances [..., d, d] towards their diagonals: few images do not span all of d.

    A small multiple of the identity keeps those of equal images invertible.
    """
    eye = np.eye(covariance.shape[-1])
    variances = np.diagonal(covariance, axis1=-2, axis2=-1)
    floor = 0.01 * variances.mean(-1)[..., None, None] + 1e-6
    return (1 - _SHRINKAGE) * covariance + eye * (_SHRINKAGE * variances[..., None] + floor)


def _left_out_distances(seen: np.ndarray) -> np.ndarray:
    """Returns the distance of each image from the others, whose statistics do not know it, [n].

    The distance of an image from statistics that it is part of is bounded by (n - 1) / sqrt(n),
    so that with few images all others would be further away.

    Args:
      seen: float64 [n, d], n > 2.
    """
    n = len(seen)
    away = seen - seen.mean(0)
    scatter = away.T @ away
    # Leaving out row i moves the mean by away_i / (n - 1) and takes n / (n - 1) away_i away_i^T
    # from the scatter.
    others = scatter - n / (n - 1) * away[:, :, None] * away[:, None, :]
    precisions = np.linalg.inv(_shrunk(others / (n - 2)))
    away = away * n / (n - 1)
    return np.sqrt(np.einsum("ni,nij,nj->n", away, precisions, away))

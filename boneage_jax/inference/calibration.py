"""Calibrates predictions on new radiographs with the validation split.

Determines the correction of ages; the width of an interval that contains the true age (split
conformal prediction, Vovk et al. 2005: the quantile of absolute validation errors); and how far the
statistics of a new image may be from those of the validation images before it is rejected as not a
hand radiograph. The statistics are of the image, not of the network: pooled features of a network
trained only on hands place noise and plain gradients among the hands.
"""

import dataclasses
import io
import math
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from boneage_jax.errors import InputError
from boneage_jax.inference.bias_correction import Correction, cross_fitted
from boneage_jax.storage.safe_write import in_one_piece

_COVERAGE = 0.95
_MARGIN = 1.25  # times the largest distance of a validation image
_SIDE = 128  # side in pixels for statistics, whatever size the network reads
_COARSEST = 8
_COUNT = 10  # of statistics
_SHAPES: dict[str, tuple[int, ...]] = {
    **{name: () for name in ("half_width", "max_distance", "slope", "intercept")},
    "mean": (_COUNT,),
    "precision": (_COUNT, _COUNT),
}
_LARGEST = 2**20  # bytes of a file; ours have 2,500
_UNREADABLE = (
    *(ValueError, KeyError, OSError, EOFError, RuntimeError, NotImplementedError, MemoryError),
    *(zipfile.BadZipFile, zlib.error),
)


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
      half_width: months; the interval corrected prediction ± half_width contains the true age of
        95 % of new radiographs.
      mean: float64 [10], mean of `image_statistics`.
      precision: float64 [10, 10], inverse of their covariance.
      max_distance: Mahalanobis distance above which an image is not accepted.
      correction: correction of predicted ages.
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
        """Fits a calibration to predictions on a split that the network was not trained on.

        Args:
          predicted, true: months [n], uncorrected predictions and true ages.
          images: uint8 [S, S] each, in any order.
          method: method of the correction, see `boneage_jax.inference.bias_correction`.
        """
        correction = Correction.fit(predicted, true, method)
        predicted = cross_fitted(predicted, true, method)
        errors = np.sort(np.abs(predicted.astype(np.float64) - true))
        # The finite-sample quantile; with fewer than 19 images it is the largest error.
        rank = min(math.ceil(_COVERAGE * (len(errors) + 1)), len(errors)) - 1
        seen = np.stack([image_statistics(image) for image in images])
        covariance = np.cov(seen.T) if len(seen) > 1 else np.eye(seen.shape[1])
        # Shrunk a little towards the identity: few images do not span all directions.
        covariance += np.eye(len(covariance)) * (
            0.01 * np.trace(covariance) / len(covariance) + 1e-6
        )
        fitted = cls(float(errors[rank]), seen.mean(0), np.linalg.inv(covariance), 0.0, correction)
        largest = float(fitted._of(seen).max())
        return dataclasses.replace(fitted, max_distance=_MARGIN * largest)

    def distance(self, images: Iterable[np.ndarray]) -> np.ndarray:
        """Returns the Mahalanobis distance of images from the validation images, [n].

        Args:
          images: uint8 [S, S] each.
        """
        return self._of(np.stack([image_statistics(image) for image in images]))

    def _of(self, statistics: np.ndarray) -> np.ndarray:
        away = statistics - self.mean
        return np.sqrt(np.einsum("ni,ij,nj->n", away, self.precision, away))

    def save(self, path: Path) -> None:
        """Writes an .npz file of plain arrays, atomically."""
        arrays = dataclasses.asdict(self)
        with in_one_piece(path) as part, part.open("wb") as file:
            np.savez(file, **arrays.pop("correction"), **arrays)

    @classmethod
    def load(cls, path: Path) -> "Calibration":
        """Reads a file written by `save`; nothing in it is executed.

        Raises:
          InputError: the file is missing or damaged.
        """
        try:
            stored = _read_arrays(path)
            correction = Correction(float(stored["slope"]), float(stored["intercept"]))
            half_width, max_distance = float(stored["half_width"]), float(stored["max_distance"])
            if min(half_width, max_distance) < 0:
                raise ValueError(f"half_width={half_width}, max_distance={max_distance}")
            return cls(half_width, stored["mean"], stored["precision"], max_distance, correction)
        except FileNotFoundError:
            raise InputError(
                f"{path} is missing: the training in this workdir has not ended; start it again"
            ) from None
        except _UNREADABLE as error:
            raise InputError(
                f"{path} is damaged ({error}); remove it and report.json and run main again"
            ) from error


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of a calibration; checks shapes before anything of that size is allocated.

    Raises:
      ValueError: a file that is too large, or an array that is missing, of another shape, or not
        finite. Damaged archives raise other errors, see `_UNREADABLE`.
    """
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"it has {path.stat().st_size:,} bytes")
    found = {"slope": np.ones(()), "intercept": np.zeros(())}  # older files have no correction
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
        names = {name.removesuffix(".npy") for name in archive.namelist()}
        for name in _SHAPES:
            if name in found and name not in names:
                continue
            with archive.open(f"{name}.npy") as file:
                content = io.BytesIO(file.read(_LARGEST))
            np.lib.format.read_magic(content)
            shape, _, dtype = np.lib.format.read_array_header_1_0(content)
            if shape != _SHAPES[name] or dtype.kind != "f":
                raise ValueError(f"{name} is {dtype} {list(shape)}")
            content.seek(0)
            found[name] = np.lib.format.read_array(content, allow_pickle=False)
            if not np.isfinite(found[name]).all():
                raise ValueError(f"{name} is not finite")
    return found

"""Corrects the bias of predicted ages that shows on the validation split.

A network with an absolute-error loss on few images shrinks ages towards the middle of their range
and may have a constant offset of some months. Both show on images it was not trained on.
"""

import dataclasses

import numpy as np

METHODS = ("none", "shift", "line")
_FOLDS = 10


@dataclasses.dataclass(frozen=True)
class Correction:
    """Linear correction of ages in months: corrected = slope * predicted + intercept."""

    slope: float = 1.0
    intercept: float = 0.0

    @classmethod
    def fit(cls, predicted: np.ndarray, true: np.ndarray, method: str) -> "Correction":
        """Fits a correction to predictions and true ages [n] in months.

        Args:
          predicted, true: for images that the network was not trained on, n >= 1.
          method: 'none'; 'shift', which removes the median error and so minimises the absolute
            error; 'line', least squares of true on predicted ages, then the median error. With
            fewer than three distinct predictions, 'line' only shifts.

        Raises:
          ValueError: an unknown method, or vectors of different lengths.
        """
        predicted, true = np.asarray(predicted, np.float64), np.asarray(true, np.float64)
        if method not in METHODS or predicted.shape != true.shape:
            raise ValueError(f"{method!r} of {predicted.shape} predictions, {true.shape} ages")
        if method == "none":
            return cls()
        slope = 1.0
        if method == "line" and len(np.unique(predicted)) > 2:
            slope = float(np.cov(predicted, true)[0, 1] / np.var(predicted, ddof=1))
        return cls(slope, float(np.median(true - slope * predicted)))

    def __call__(self, predicted: np.ndarray) -> np.ndarray:
        """Returns corrected ages in months, of the shape and dtype of `predicted`."""
        return (self.slope * predicted + self.intercept).astype(predicted.dtype)


def cross_fitted(predicted: np.ndarray, true: np.ndarray, method: str) -> np.ndarray:
    """Corrects each prediction by what the others show, for reports on the images fitted to.

    Ten folds of interleaved images. A correction fitted on an image is never applied to it, so that
    the error reported on the validation split is not that of its own fit.

    Args:
      predicted, true: months [n].
      method: see `Correction.fit`.

    Returns:
      Corrected ages in months [n].
    """
    corrected = np.array(predicted)
    fold = np.arange(len(predicted)) % _FOLDS
    for number in np.unique(fold):
        here = fold == number
        if not here.all():
            found = Correction.fit(predicted[~here], true[~here], method)
            corrected[here] = found(predicted[here])
    return corrected

"""Correction of predicted ages by what the validation split shows to be wrong with them.

A network with an absolute-error loss on few images shrinks ages towards their middle and may be off
by some months throughout. Both are seen on images it was not trained on.
"""

import dataclasses

import numpy as np

METHODS = ("none", "shift", "line")
_FOLDS = 10


@dataclasses.dataclass(frozen=True)
class Correction:
    """corrected = slope * predicted + intercept, in months."""

    slope: float = 1.0
    intercept: float = 0.0

    @classmethod
    def fit(cls, predicted: np.ndarray, true: np.ndarray, method: str) -> "Correction":
        """From predictions and true ages [n] in months.

        Args:
          predicted, true: of images that the network was not trained on, n >= 1.
          method: 'none'; 'shift', which takes out the median error, as minimises the absolute one;
            'line', least squares of true on predicted ages and then the median error. Fewer than
            three different predictions make no line and are shifted.

        Raises:
          ValueError: another method, or vectors of different lengths.
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
        """Corrected ages of the shape and dtype of `predicted`, in months."""
        return (self.slope * predicted + self.intercept).astype(predicted.dtype)


def cross_fitted(predicted: np.ndarray, true: np.ndarray, method: str) -> np.ndarray:
    """Each prediction corrected by what the others show: for reports on the fitted images.

    Ten folds of alternate images. What is fitted on an image never corrects that image, so that
    the error reported on the validation split is not that of its own fit.

    Args:
      predicted, true: months [n].
      method: see `Correction.fit`.
    """
    corrected = np.array(predicted)
    fold = np.arange(len(predicted)) % _FOLDS
    for number in np.unique(fold):
        here = fold == number
        if not here.all():
            found = Correction.fit(predicted[~here], true[~here], method)
            corrected[here] = found(predicted[here])
    return corrected

"""Corrects the bias of predicted ages that shows on the validation split.

A network with an absolute-error loss on few images shrinks ages towards the middle of their range
and may have a constant offset of some months. Both show on images it was not trained on.
"""

import dataclasses

import numpy as np

METHODS = ("none", "shift", "line", "ridge")
_FOLDS = 10
# Standard deviations that ridge expects of the correction: months at the mean age, and its slope.
_PRIOR = np.array([5.0, 0.05])
# Spreads from which an error weighs less. The usual 1.345 (Huber 1981) comes closer to the median,
# which is not the mean where errors are skewed, as those of wrongly exposed radiographs are.
_HUBER = 2.5
_ROUNDS = 30  # of reweighting; it converges in fewer
_MIN_SPREAD = 1e-3  # months, of errors that are all equal


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
            fewer than three distinct predictions, 'line' only shifts. 'ridge', a robust line that
            is shrunk towards no correction as far as the errors leave it uncertain: for about a
            hundred images, whose mean error is known to one month only. It never turns the order of
            ages, and corrects nothing with fewer than three images.

        Raises:
          ValueError: an unknown method, or vectors of different lengths.
        """
        predicted, true = np.asarray(predicted, np.float64), np.asarray(true, np.float64)
        if method not in METHODS or predicted.shape != true.shape:
            raise ValueError(f"{method!r} of {predicted.shape} predictions, {true.shape} ages")
        if method == "none":
            return cls()
        if method == "ridge":
            return cls(*_ridge(predicted, true))
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


def _ridge(predicted: np.ndarray, true: np.ndarray) -> tuple[float, float]:
    """Returns slope and intercept of the robust line that is shrunk towards no correction."""
    if len(predicted) < 3:
        return 1.0, 0.0
    centre = float(predicted.mean())
    design = np.stack([np.ones(len(predicted)), predicted - centre], axis=1)
    offset, tilt = _shrunk_fit(design, true - predicted, _PRIOR)
    if tilt <= -1:  # the network does not read these ages
        (offset,), tilt = _shrunk_fit(design[:, :1], true - predicted, _PRIOR[:1]), 0.0
    return float(1 + tilt), float(offset - tilt * centre)


def _shrunk_fit(design: np.ndarray, values: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Returns coefficients [k] of the most probable fit, given that they are small.

    Their priors are normal around 0, so that this is ridge regression (Hoerl & Kennard 1970) whose
    penalty is the variance of the errors over that of the prior. The loss is Huber's, minimised by
    iteratively reweighted least squares.

    Args:
      design: float64 [n, k], the first column of ones.
      values: float64 [n].
      prior: standard deviations of the coefficients, [k].
    """
    count, size = design.shape
    found = np.zeros(size)
    found[0] = np.median(values)
    for _ in range(_ROUNDS):
        away = values - design @ found
        spread = 1.4826 * float(np.median(np.abs(away - np.median(away))))  # of normal errors
        limit = _HUBER * max(spread, _MIN_SPREAD)
        weights = limit / np.maximum(np.abs(away), limit)
        variance = max(float(weights @ away**2) / max(count - size, 1), _MIN_SPREAD**2)
        weighted = design.T * weights
        found = np.linalg.solve(weighted @ design + np.diag(variance / prior**2), weighted @ values)
    return found

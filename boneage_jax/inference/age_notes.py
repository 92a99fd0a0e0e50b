"""What a user should know of a predicted age: sex, range, interval, doubts about the image."""

from collections.abc import Sequence

import numpy as np

from boneage_jax.inference.calibration import Calibration

_NO_SEX = "sex unknown: the network's own estimate is used"
_OTHER_SEX = "the network sees the other sex: is it the right one?"
_SURE_OF_SEX = 0.95  # its probability: 1 % of radiographs are noted, half of wrong sexes
_NO_NUMBER = "the network gives no number"
_OUTSIDE = "age beyond those of training: the nearest is given"
_NOT_JUDGED = "accepted is unknown: too few images in training"
_BELOW_0 = "age below 0: 0 is given"


def age_notes(
    calibration: Calibration,
    predicted: np.ndarray,
    male: np.ndarray,
    p_male: np.ndarray,
    reasons: Sequence[str],
    *,
    takes_sex: bool,
) -> np.ndarray:
    """Returns the notes on each prediction, separated by semicolons, str [n].

    Args:
      calibration: what was applied to the ages.
      predicted: corrected ages in months before they were limited to possible ones, [n].
      male: 1, 0 or -1 for unknown, as it was given, [n].
      p_male: the network's probability, [n].
      reasons: why the view network does not accept each image, else "".
      takes_sex: whether the age depends on the given sex.
    """
    nearest, within = calibration.possible(predicted)
    finite = np.isfinite(predicted)
    moved = finite & (predicted != nearest)
    images, coverage = calibration.images, calibration.coverage
    of_all = (
        (
            f"interval holds {coverage:.0%} instead of 95%: {images} validation images",
            coverage < 0.95,
        ),
        (_NOT_JUDGED, not calibration.judges_images),
    )
    of_each = (
        (_NO_NUMBER, ~finite),
        (_OUTSIDE, moved & ~within),
        (_BELOW_0, moved & within),
        (_NO_SEX, (male < 0) & takes_sex),
        (_OTHER_SEX, (male == 0) & (p_male > _SURE_OF_SEX) & takes_sex),
        (_OTHER_SEX, (male == 1) & (p_male < 1 - _SURE_OF_SEX) & takes_sex),
    )
    always = [text for text, holds in of_all if holds]
    notes = [
        [reason, *(text for text, holds in of_each if holds[n]), *always]
        for n, reason in enumerate(reasons)
    ]
    return np.array(["; ".join(filter(None, texts)) for texts in notes], str)

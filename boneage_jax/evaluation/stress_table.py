"""Errors, rejections and repairs of a trained network on radiographs that are not in order."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from boneage_jax.evaluation.stresses import STRESSES
from boneage_jax.inference.predictor import Predictor
from boneage_jax.tasks.metrics import bootstrap_interval

# Notes of a radiograph that was put right before it was read.
_REPAIRED = ("put upright", "swapped", "cut out", "cut off")


def stress_rows(
    predictor: Predictor,
    images: Sequence[np.ndarray],
    true: np.ndarray,
    male: Sequence[int],
) -> Iterator[dict[str, Any]]:
    """Reads radiographs under each stress of `STRESSES` and yields a row of numbers for it.

    Args:
      predictor: the network for bone age.
      images: radiographs as they would be sent, uint8 [H, W] each, at least one.
      true: their bone ages in months [n].
      male: 1, 0, or -1 for unknown, of each.

    Yields:
      what: name of the stress. n: number of radiographs. mae, mae_low, mae_high: mean absolute
      error in months with its bootstrap interval. change, change_low, change_high: of the error
      against the untouched radiographs, paired. accepted, put_right: parts of the radiographs.
      mae_accepted, coverage_accepted: error, and part of the true ages inside the interval, of
      those that are accepted; None where there are none.
    """
    untouched = np.zeros(0)
    for name, stress in STRESSES.items():
        pictures = [
            stress.draw(image, np.random.default_rng(number)) for number, image in enumerate(images)
        ]
        found = predictor(pictures, male)
        error = np.abs(found["bone_age_months"] - true)
        untouched = untouched if len(untouched) else error
        accepted = found["accepted"] == 1
        inside = (found["low_months"] <= true) & (true <= found["high_months"])
        low, high = bootstrap_interval(error)
        change_low, change_high = bootstrap_interval(error - untouched)
        repaired = [any(word in note for word in _REPAIRED) for note in found["note"]]
        yield {
            "what": name,
            "n": len(error),
            "mae": float(error.mean()),
            "mae_low": low,
            "mae_high": high,
            "change": float((error - untouched).mean()),
            "change_low": change_low,
            "change_high": change_high,
            "accepted": float(accepted.mean()),
            "put_right": float(np.mean(repaired)),
            "mae_accepted": float(error[accepted].mean()) if accepted.any() else None,
            "coverage_accepted": float(inside[accepted].mean()) if accepted.any() else None,
        }

"""Compares two recipes by the paired absolute errors of their predictions.

Two results on the same images share the difficulty of those images, so differences are taken per
image. If a recipe was run with several seeds, both images and seeds are resampled (crossed
bootstrap, Owen 2007, doi 10.1214/07-AOAS134: each factor is resampled independently; slightly
conservative).
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from boneage_jax.data.label_table import read_numbers, read_table
from boneage_jax.errors import InputError

_RESAMPLES = 10_000
_AT_ONCE = 2_000_000  # errors held in memory at a time: 16 MB
_COLUMNS = ("id", "true_age", "predicted_age")


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Predictions of the runs of one recipe for the same images.

    Attributes:
      ids: [n] text.
      true: months [n].
      predicted: months [runs, n].
    """

    ids: tuple[str, ...]
    true: np.ndarray
    predicted: np.ndarray

    @property
    def errors(self) -> np.ndarray:
        """Absolute errors, months [runs, n]."""
        return np.abs(self.predicted - self.true)


def read_predictions(paths: Sequence[Path], split: str = "validation") -> Predictions:
    """Reads the predictions of one recipe from one or several runs.

    Args:
      paths: workdirs, or files such as predictions.csv.
      split: the split whose predictions are read from a workdir.

    Raises:
      InputError: a file is missing or damaged, or the runs differ in images or true ages.
    """
    tables = [_read(predictions_file(path, split)) for path in paths]
    ids = tuple(tables[0])
    parts = [
        Predictions(tuple(t), *(np.array(column) for column in zip(*t.values(), strict=True)))
        for t in tables
    ]
    names = [str(path) for path in paths]
    aligned = [
        align(dataclasses.replace(part, predicted=part.predicted[None]), ids, parts[0].true, pair)
        for part, pair in zip(parts, ((names[0], name) for name in names), strict=True)
    ]
    return Predictions(ids, parts[0].true, np.concatenate([part.predicted for part in aligned]))


def align(
    given: Predictions, ids: Sequence[str], true: np.ndarray, names: tuple[str, str]
) -> Predictions:
    """Returns `given` in the order of other `ids`, after checking its true ages.

    Args:
      given: predictions.
      ids: ids of the images, in the order wanted.
      true: true ages of these images in months.
      names: names of the other predictions and of `given`, for messages.

    Raises:
      InputError: different images, or different true ages.
    """
    lone = sorted(set(ids) ^ set(given.ids))
    if lone:
        raise InputError(
            f"{names[0]} and {names[1]} are not of the same images: id {lone[0]} is in one of them "
            "only; compare runs on the same split with the same data.split_seed"
        )
    place = {key: number for number, key in enumerate(given.ids)}
    order = [place[key] for key in ids]
    changed = np.flatnonzero(given.true[order] != true)
    if changed.size:
        raise InputError(
            f"{names[0]} and {names[1]} disagree on the true age of id {ids[changed[0]]}"
        )
    return Predictions(tuple(ids), true, given.predicted[:, order])


def compare(a: Predictions, b: Predictions, seed: int = 0) -> dict[str, float]:
    """Compares the mean absolute errors of two recipes.

    Args:
      a: predictions of one recipe.
      b: predictions of the other, for the same images in the same order.
      seed: seed of the resampling.

    Returns:
      mae_a, mae_b, difference (b - a) in months with difference_low and difference_high (95 %
      paired bootstrap interval, 10,000 resamples), p (two-sided, from random sign flips of the mean
      difference of each image, or from all of them for 13 images or fewer; the null hypothesis is
      no difference between the recipes on these images with these runs), images, runs_a, runs_b.

    Raises:
      ValueError: different images, or none.
    """
    if a.ids != b.ids or not a.ids:
        raise ValueError("both predictions must be of the same images, at least one")
    rng = np.random.default_rng(seed)
    errors_a, errors_b = a.errors, b.errors
    each = errors_b.mean(axis=0) - errors_a.mean(axis=0)
    low, high = _interval(errors_a, errors_b, rng)
    return {
        "mae_a": float(errors_a.mean()),
        "mae_b": float(errors_b.mean()),
        "difference": float(each.mean()),
        "difference_low": float(low),
        "difference_high": float(high),
        "p": _sign_flips(each, rng),
        "images": len(each),
        "runs_a": len(errors_a),
        "runs_b": len(errors_b),
    }


def _interval(
    errors_a: np.ndarray, errors_b: np.ndarray, rng: np.random.Generator
) -> tuple[float, float]:
    """Returns the 95 % interval of the difference of the mean errors.

    Images and the runs of both recipes are resampled.
    """
    import scipy.stats  # takes a second to load

    def difference(images: Any, runs_a: Any, runs_b: Any, axis: int) -> Any:  # indices [batch, n]
        means = [
            errors[runs[:, :, None], images[:, None]].mean(axis=(1, 2))
            for errors, runs in ((errors_a, runs_a), (errors_b, runs_b))
        ]
        return means[1] - means[0]

    # SciPy needs two: a single image or run is repeated.
    sizes = errors_a.shape[1], len(errors_a), len(errors_b)
    found = scipy.stats.bootstrap(
        [np.arange(size) if size > 1 else np.zeros(2, int) for size in sizes],
        difference,
        n_resamples=_RESAMPLES,
        batch=max(_AT_ONCE // (sizes[0] * max(sizes[1:])), 1),
        method="percentile",
        rng=rng,
    )
    return found.confidence_interval


def _sign_flips(each: np.ndarray, rng: np.random.Generator) -> float:
    """Returns the p-value of the absolute mean of `each` under random signs; never 0."""
    import scipy.stats

    if len(each) == 1:
        return 1.0
    found = scipy.stats.permutation_test(
        (each,),
        lambda values, axis: np.abs(np.mean(values, axis=axis)),
        permutation_type="samples",
        n_resamples=_RESAMPLES,
        batch=max(_AT_ONCE // len(each), 1),
        alternative="greater",
        rng=rng,
    )
    return float(found.pvalue)


def predictions_file(path: Path, split: str) -> Path:
    """Returns the file of predictions of a workdir, or the file itself.

    Raises:
      InputError: there is none.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise InputError(f"{path}: no such workdir or file of predictions")
    own = path / "evaluation" / split / "predictions.csv"
    if own.exists() or split != "validation":
        if not own.exists():
            raise InputError(f"{own} is missing; run evaluate --workdir={path} --split={split}")
        return own
    return path / "predictions.csv"


def _read(path: Path) -> dict[str, tuple[float, float]]:
    """Returns (true, predicted) age by id; a spreadsheet may have saved the file."""
    if not path.exists():
        raise InputError(f"{path} is missing: the run has not ended")
    header, rows = read_table(path)[:2]
    if not set(_COLUMNS) <= set(header):
        has = ", ".join(header)
        raise InputError(f"{path} needs the columns {', '.join(_COLUMNS)}; it has {has}")
    ages = [
        read_numbers([row[name] for _, row in rows], f"{path} column {name}")
        for name in _COLUMNS[1:]
    ]
    table = dict(zip((row["id"] for _, row in rows), zip(*ages, strict=True), strict=True))
    if not table or len(table) < len(rows) or not np.isfinite(list(table.values())).all():
        raise InputError(f"{path} is damaged: no rows, an id twice, or an age that is no number")
    return table

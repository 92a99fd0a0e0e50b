"""Metrics of predictions: bone age in months, sex, and hand masks."""

from typing import Any

import numpy as np

BAND = 24  # months, width of an age band
_RESAMPLES = 2000
_AT_ONCE = 2_000_000  # bootstrap draws held in memory at a time: 32 MB with their values


def age_summary(
    predicted: np.ndarray, true: np.ndarray, male: np.ndarray, train_mean: float
) -> dict[str, Any]:
    """Returns the `age` group of report.json, in months except for the fractions within_*.

    Args:
      predicted: ages in months [n], n >= 1.
      true: ages in months [n].
      male: 1, 0, or -1 for unknown sex [n].
      train_mean: mean age of the training split in months, the prediction without a network.

    Returns:
      mae, mae_low and mae_high (95 % bootstrap interval over the images, percentiles of 2000
      resamples with a fixed seed), rmse, bias (mean of predicted - true), within_6 and within_12
      (fraction of images whose error is at most that), baseline_mae, by_sex
      {male, female: {n, mae, bias}} and by_age [{low, high, n, mae, bias}] for true ages in
      [low, high). Sexes and age bands without images are left out.

    Raises:
      ValueError: no images, or arrays of different lengths.
    """
    predicted, true = np.asarray(predicted, np.float64), np.asarray(true, np.float64)
    male = np.asarray(male)
    if not len(true) or not predicted.shape == true.shape == male.shape:
        raise ValueError(
            "predicted, true and male must be vectors of one length, at least 1; got "
            f"{predicted.shape}, {true.shape} and {male.shape}"
        )
    difference = predicted - true
    error = np.abs(difference)
    low, high = bootstrap_interval(error)
    by_sex = {
        name: _group(difference[male == value])
        for name, value in (("male", 1), ("female", 0))
        if (male == value).any()
    }
    bands = np.floor(true / BAND).astype(int)
    by_age = [
        {"low": int(band) * BAND, "high": int(band + 1) * BAND, **_group(difference[bands == band])}
        for band in np.unique(bands)
    ]
    return {
        "mae": float(error.mean()),
        "mae_low": low,
        "mae_high": high,
        "rmse": float(np.sqrt(np.square(error).mean())),
        "bias": float(difference.mean()),
        "within_6": float((error <= 6).mean()),
        "within_12": float((error <= 12).mean()),
        "baseline_mae": float(np.abs(true - train_mean).mean()),
        "by_sex": by_sex,
        "by_age": by_age,
    }


def bootstrap_interval(values: np.ndarray) -> tuple[float, float]:
    """Returns the 95 % interval of the mean of `values` [n], from 2000 seeded resamples."""
    import scipy.stats  # takes a second to load and only reports need it

    found = scipy.stats.bootstrap(
        (np.resize(values, max(len(values), 2)),),  # SciPy needs two: a single value is repeated
        np.mean,
        n_resamples=_RESAMPLES,
        batch=max(_AT_ONCE // len(values), 1),
        method="percentile",
        rng=np.random.default_rng(0),
    )
    low, high = found.confidence_interval
    return float(low), float(high)


def sex_summary(p_male: np.ndarray, male: np.ndarray) -> dict[str, Any]:
    """Returns the `sex` group of report.json; male is positive, images of unknown sex are excluded.

    Args:
      p_male: probability of male [n]; above 0.5 counts as male.
      male: 1, 0, or -1 for unknown sex [n]; at least one is known.

    Returns:
      accuracy, precision, recall, f1, auc, confusion_matrix [[TN, FP], [FN, TP]], female and male
      {precision, recall}, brier (mean squared error of the probability, Brier 1950), and
      calibration: for each tenth of the probability that occurs {n, p_male, male}, the mean
      probability and the fraction of males. Ratios with denominator 0 are left out, and so is the
      AUC if only one sex occurs.

    Raises:
      ValueError: no image of known sex.
    """
    p_male, male = np.asarray(p_male, np.float64), np.asarray(male)
    known = male >= 0
    if not known.any():
        raise ValueError("sex_summary needs at least one image of known sex")
    p_male, male = p_male[known], male[known] == 1
    said = p_male > 0.5
    tn, fp = int((~male & ~said).sum()), int((~male & said).sum())
    fn, tp = int((male & ~said).sum()), int((male & said).sum())
    summary: dict[str, Any] = {
        "accuracy": (tp + tn) / len(male),
        **_ratio("precision", tp, tp + fp),
        **_ratio("recall", tp, tp + fn),
        **_ratio("f1", 2 * tp, 2 * tp + fp + fn),
    }
    if tp + fn and tn + fp:
        summary["auc"] = _auc(p_male, male)
    return summary | {
        "confusion_matrix": [[tn, fp], [fn, tp]],
        "female": _ratio("precision", tn, tn + fn) | _ratio("recall", tn, tn + fp),
        "male": _ratio("precision", tp, tp + fp) | _ratio("recall", tp, tp + fn),
        "brier": float(np.square(p_male - male).mean()),
        "calibration": _calibration(p_male, male),
    }


def _calibration(p_male: np.ndarray, male: np.ndarray) -> list[dict[str, Any]]:
    tenth = np.clip((p_male * 10).astype(int), 0, 9)
    parts = [tenth == number for number in np.unique(tenth)]
    return [
        {
            "n": int(part.sum()),
            "p_male": float(p_male[part].mean()),
            "male": float(male[part].mean()),
        }
        for part in parts
    ]


def _group(difference: np.ndarray) -> dict[str, Any]:
    mae, bias = float(np.abs(difference).mean()), float(difference.mean())
    return {"n": len(difference), "mae": mae, "bias": bias}


def _ratio(name: str, part: int, whole: int) -> dict[str, float]:
    return {name: part / whole} if whole else {}


def _auc(score: np.ndarray, positive: np.ndarray) -> float:
    """Returns the area under the ROC curve (Mann-Whitney statistic; ties share their mean rank)."""
    import scipy.stats

    n = int(positive.sum())
    wins = scipy.stats.rankdata(score)[positive].sum() - n * (n + 1) / 2
    return float(wins / (n * (len(score) - n)))


def mask_summary(
    true_positive: np.ndarray,
    false_positive: np.ndarray,
    false_negative: np.ndarray,
    true_negative: np.ndarray,
) -> dict[str, Any]:
    """Returns the `mask` group of report.json. The hand is the positive class.

    Args:
      true_positive: pixels of each image [n], n >= 1.
      false_positive: pixels of each image [n].
      false_negative: pixels of each image [n].
      true_negative: pixels of each image [n].

    Returns:
      `per_image` (means over the images, plus f1_worst and f1_median) and `pooled` (over all
      pixels), each with pixel_accuracy, precision, recall, f1 (Dice) and iou. A ratio with
      denominator 0 is 1.

    Raises:
      ValueError: no images, or arrays of different lengths.
    """
    counts = [
        np.asarray(part, np.float64)
        for part in (true_positive, false_positive, false_negative, true_negative)
    ]
    if not counts[0].size or any(part.shape != counts[0].shape for part in counts):
        raise ValueError(f"need four vectors of one length >= 1, got {[p.shape for p in counts]}")
    single = _mask_ratios(*counts)
    means = {name: float(values.mean()) for name, values in single.items()}
    spread = {"f1_worst": float(single["f1"].min()), "f1_median": float(np.median(single["f1"]))}
    pooled = _mask_ratios(*(part.sum(keepdims=True) for part in counts))
    return {
        "per_image": means | spread,
        "pooled": {name: float(values[0]) for name, values in pooled.items()},
    }


def _mask_ratios(
    hit: np.ndarray, extra: np.ndarray, missed: np.ndarray, rest: np.ndarray
) -> dict[str, np.ndarray]:
    def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
        return np.divide(part, whole, out=np.ones_like(part), where=whole > 0)

    return {
        "pixel_accuracy": ratio(hit + rest, hit + extra + missed + rest),
        "precision": ratio(hit, hit + extra),
        "recall": ratio(hit, hit + missed),
        "f1": ratio(2 * hit, 2 * hit + extra + missed),
        "iou": ratio(hit, hit + extra + missed),
    }

"""Evaluates a network on a split: exact metrics, and predictions with their labels."""

import collections
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from boneage_jax.data.loader import eval_batches
from boneage_jax.data.source import Dataset, Split
from boneage_jax.errors import InputError
from boneage_jax.inference.atlas_ages import MONTHS, AtlasAges, probability_of_male
from boneage_jax.inference.bias_correction import Correction, cross_fitted
from boneage_jax.inference.network import Network, Rows
from boneage_jax.runtime.parallel import process
from boneage_jax.runtime.watchdog import PATIENCE, waiting_for
from boneage_jax.storage.state import Tree


def evaluate_split(
    network: Network, variables: Tree, split: Split, *, keys: tuple[str, ...] = ()
) -> tuple[dict[str, float], Rows]:
    """Computes metrics of a whole split, exact for any batch size, and the requested predictions.

    Args:
      network: the network to evaluate.
      variables: {'params', 'batch_stats'}.
      split: the images and labels.
      keys: the predictions to fetch, e.g. `predicted_age`, `p_male`.

    Returns:
      (metrics by name; the predictions in the order of the split, each [n, ...]).
    """
    config = network.config
    batches = eval_batches(
        split,
        network.task.labels,
        config.eval_batch_size,
        put=network.parallel.put_batch,
        process=process(),
        threads=config.data.threads,
        buffer=config.data.buffer,
    )
    total = network.task.metrics_type.empty()
    fetched: dict[str, list[np.ndarray]] = {key: [] for key in (*keys, "draw")}
    waiting: collections.deque[dict[str, Any]] = collections.deque()

    def fetch() -> None:
        for key, values in network.parallel.fetch(waiting.popleft()).items():
            fetched[key].append(values)

    waiting_for("the evaluation", PATIENCE)
    for batch in batches:
        waiting_for("the evaluation", PATIENCE)
        metrics, predictions = network.eval_step(variables, batch)
        total = total.merge(metrics)
        waiting.append({key: predictions[key] for key in keys} | {"draw": batch["draw"]})
        if len(waiting) > 1:  # one batch late, so that the device stays busy
            fetch()
    while waiting:
        fetch()
    order = np.argsort(np.concatenate(fetched.pop("draw")), kind="stable")[: len(split)]
    rows = {key: np.concatenate(values)[order] for key, values in fetched.items()}
    return {key: float(value) for key, value in total.compute().items()}, rows


def with_labels(rows: Rows, split: Split, labels: tuple[str, ...] = ()) -> Rows:
    """Adds the labels of a split to predictions on it.

    Args:
      rows: predictions in the order of the split.
      split: the images and labels.
      labels: names of further scalar labels to add.

    Returns:
      `id`, the predictions and, for ages, `true_age` (months) and `male` (1, 0, -1 for unknown).
    """
    known = split.labels
    rows = {"id": known["id"]} | rows | {key: known[key] for key in labels if key in known}
    if "predicted_age" not in rows or "bone_age" not in known:
        return rows
    unknown = np.full(len(split), -1, np.int64)
    male = known.get("male", unknown).astype(np.int64)
    return rows | {"true_age": known["bone_age"], "male": male}


def corrected(
    rows: Rows,
    config: ConfigDict,
    correction: Correction | None = None,
    atlas: AtlasAges | None = None,
) -> Rows:
    """Corrects ages as `config.bias_correction` says; returns other rows unchanged.

    Args:
      rows: as `with_labels` returns them.
      config: config of the run.
      correction: correction that the run fitted on its validation split; None for the rows of that
        split itself, which are cross-fitted.
      atlas: moves the corrected ages to those that readers write down. The ages before are kept
        then, as `network_age`.
    """
    if "predicted_age" not in rows:
        return rows
    ages = rows["predicted_age"]
    if correction is not None:
        ages = correction(ages)
    elif config.bias_correction != "none":
        ages = cross_fitted(ages, rows["true_age"], config.bias_correction)
    if atlas is None:
        return rows | {"predicted_age": ages}
    moved = atlas(ages, known_sexes(rows, config))
    return rows | {"network_age": ages, "predicted_age": moved}


def known_sexes(rows: Rows, config: ConfigDict) -> np.ndarray:
    """Returns the sex that an atlas needs: the given one, as far as the network takes it.

    Args:
      rows: as `with_labels` returns them.
      config: config of the run.

    Returns:
      Probability of the male sex, [n].
    """
    male = rows["male"] if config.model.sex_input else np.full(len(rows["male"]), -1)
    return np.asarray(probability_of_male(male, rows["p_male"]))


def atlas_of(dataset: Dataset, config: ConfigDict) -> AtlasAges | None:
    """Returns the ages that readers of the training split wrote down, if `config.test_atlas`.

    Raises:
      InputError: an age that the atlas does not count.
    """
    if not config.test_atlas:
        return None
    labels = dataset.split(config.data.train_split).labels
    ages = labels["bone_age"]
    if not ages.max() < MONTHS:  # also NaN
        raise InputError(
            f"config.test_atlas counts ages up to {MONTHS - 1} months, and the training split has "
            f"{ages.max():g}; set it to 0"
        )
    male = labels.get("male", np.full(len(ages), -1))
    return AtlasAges.fit(ages, male, float(config.test_atlas))

"""Runs a network over a split and summarises what it says."""

import collections
from collections.abc import Callable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from boneage_jax.data.loader import eval_batches
from boneage_jax.data.source import Split
from boneage_jax.inference.bias_correction import Correction, cross_fitted
from boneage_jax.runtime.parallel import process
from boneage_jax.state import TrainState
from boneage_jax.training.run import Run

Rows = dict[str, np.ndarray]


def evaluate_split(
    run: Run,
    state: TrainState,
    split: Split,
    *,
    keys: tuple[str, ...] = (),
    tick: Callable[[], None] = lambda: None,
) -> tuple[dict[str, float], Rows]:
    """Metrics of a whole split, exact for any batch size, and the predictions asked for.

    Args:
      run: the run the state belongs to.
      state: its parameters; averaged ones are used where the run keeps them.
      split: the images.
      keys: the predictions to fetch, e.g. `predicted_age`, `p_male`, `features`.
      tick: called at each batch, a sign of life.

    Returns:
      (metrics by name; the predictions in the order of the split, each [n, ...]).
    """
    variables = {"params": state.eval_params, "batch_stats": state.batch_stats}
    batches = eval_batches(
        split,
        run.task.labels,
        run.config.eval_batch_size,
        put=run.parallel.put_batch,
        process=process(),
        threads=run.config.data.threads,
        buffer=run.config.data.buffer,
    )
    total = run.task.metrics_type.empty()
    fetched: dict[str, list[np.ndarray]] = {key: [] for key in (*keys, "draw")}
    waiting: collections.deque[dict[str, Any]] = collections.deque()

    def fetch() -> None:
        for key, values in run.parallel.fetch(waiting.popleft()).items():
            fetched[key].append(values)

    for batch in batches:
        tick()
        metrics, predictions = run.eval_step(variables, batch)
        total = total.merge(metrics)
        waiting.append({key: predictions[key] for key in keys} | {"draw": batch["draw"]})
        if len(waiting) > 1:  # one batch behind, so that the device always has work
            fetch()
    while waiting:
        fetch()
    order = np.argsort(np.concatenate(fetched.pop("draw")), kind="stable")[: len(split)]
    rows = {key: np.concatenate(values)[order] for key, values in fetched.items()}
    return {key: float(value) for key, value in total.compute().items()}, rows


def with_labels(rows: Rows, split: Split) -> Rows:
    """Predictions beside the labels of their split: adds id and, of ages, true_age and male."""
    labels = split.labels
    rows = {"id": labels["id"]} | rows
    if "predicted_age" not in rows:
        return rows
    unknown = np.full(len(split), -1, np.int64)
    male = labels.get("male", unknown).astype(np.int64)
    return rows | {"true_age": labels["bone_age"], "male": male}


def corrected(rows: Rows, config: ConfigDict, correction: Correction | None = None) -> Rows:
    """Rows with the ages corrected as `config.bias_correction` says; others are left alone.

    Args:
      rows: as `with_labels` returns them.
      config: of the run.
      correction: what the run fitted on its validation split; None for the rows of that split
        itself, which are then corrected each by what the others show.
    """
    if "predicted_age" not in rows or config.bias_correction == "none":
        return rows
    ages = rows["predicted_age"]
    if correction is not None:
        return rows | {"predicted_age": correction(ages)}
    return rows | {"predicted_age": cross_fitted(ages, rows["true_age"], config.bias_correction)}

"""Contents of report.json."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from boneage_jax.data.mask_cost import read_note
from boneage_jax.data.source import Dataset
from boneage_jax.errors import InputError
from boneage_jax.inference.load_trained import Trained
from boneage_jax.report.metric_writer import column
from boneage_jax.runtime.machine import hardware, versions


def make_report(
    trained: Trained,
    dataset: Dataset,
    split: str,
    rows: dict[str, np.ndarray],
    history: list[dict[str, Any]],
    *,
    members: int = 1,
    test_opened: int = 0,
) -> dict[str, Any]:
    """Builds the report of a split; groups that do not apply are omitted.

    Args:
      trained: the evaluated network.
      dataset: data set that has the split.
      split: name of the split that `rows` belong to.
      rows: predictions and labels.
      history: rows of metrics.jsonl.
      members: number of networks of this size averaged per prediction.
      test_opened: how often the test split was evaluated with this run.

    Returns:
      `dataset`, the groups of the task (`age`, `sex`, `mask`), `compute`, `curve`, `config`; see
      docs/design.md.

    Raises:
      InputError: the task returns a group with the name of one of the others.
    """
    network, task, config = trained.network, trained.network.task, trained.network.config
    evaluations = [row for row in history if f"validation/{task.metric}" in row]
    curve = make_curve(evaluations, task.metric, trained.folder)
    seconds = column(history[-1:], "seconds", trained.folder)
    speeds = [row["images_per_second"] for row in history if row.get("images_per_second")]
    eval_batches = -(-len(dataset.split(config.data.eval_split)) // config.eval_batch_size)
    note = read_note(dataset.background) if dataset.background else None
    compute: dict[str, Any] = {
        "train_flops": trained.flops_spent,
        "prepare_flops": 0,
        "mask_flops": note[1].total if note else 0,
        "eval_flops": len(evaluations) * eval_batches * network.eval_flops,
        "flops_per_prediction": members * network.eval_flops // config.eval_batch_size
        + (note[1].flops_per_mask if note else 0),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(trained.variables["params"])),
        "seconds": seconds[0] if seconds else 0.0,
        "hardware": hardware(),
        "versions": versions(),
    }
    if speeds:
        compute["images_per_second"] = float(np.median(speeds))
    groups = task.summarize(rows)
    if taken := groups.keys() & {"dataset", "compute", "curve", "config"}:
        raise InputError(
            f"task {task.name}: summarize returns {min(taken)!r}, a group of the report"
        )
    return {
        "dataset": {
            "name": dataset.name,
            "config": dataset.config,
            "version": dataset.version,
            "split": split,
            "splits": {name: len(part) for name, part in dataset.splits.items()},
            "test_unlocked": test_opened > 0,
            "test_openings": test_opened,
        },
        **groups,
        "compute": compute,
        "curve": curve,
        "config": config.to_dict(),
    }


def make_curve(
    evaluations: Sequence[dict[str, Any]], metric: str, workdir: Path
) -> list[dict[str, Any]]:
    """Returns step, FLOPs and metric of each evaluation, given as rows of metrics.jsonl.

    Raises:
      InputError: see `boneage_jax.report.metric_writer.column`.
    """
    flops = column(evaluations, "flops", workdir)
    values = column(evaluations, f"validation/{metric}", workdir)
    return [
        {"step": row["step"], "flops": spent, metric: value}
        for row, spent, value in zip(evaluations, flops, values, strict=True)
    ]

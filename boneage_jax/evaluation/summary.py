"""What a run has to say for itself: the content of report.json."""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import jax
import numpy as np

from boneage_jax.data.source import Dataset
from boneage_jax.inference.background_removal import read_note
from boneage_jax.state import TrainState, flops_of
from boneage_jax.training.run import Run

_VERSIONS = (
    "boneage_jax jax jaxlib flax optax orbax-checkpoint grain dm-pix tensorflow-datasets numpy"
)


def make_report(
    run: Run,
    state: TrainState,
    dataset: Dataset,
    split: str,
    rows: dict[str, np.ndarray],
    history: list[dict[str, Any]],
    *,
    members: int = 1,
    test_opened: int = 0,
) -> dict[str, Any]:
    """The report of a split, as DESIGN describes it; groups that do not apply are absent.

    Args:
      run: the run.
      state: the state that was evaluated.
      dataset: where `split` comes from.
      split: name of the split that `rows` belong to.
      rows: predictions and labels.
      history: the rows of metrics.jsonl.
      members: how many networks of this size make one prediction.
      test_opened: how often the test split was evaluated with this run.
    """
    evaluations = [row for row in history if f"validation/{run.task.metric}" in row]
    curve = [
        {
            "step": row["step"],
            "flops": row["flops"],
            run.task.metric: row[f"validation/{run.task.metric}"],
        }
        for row in evaluations
    ]
    speeds = [row["images_per_second"] for row in history if row.get("images_per_second")]
    eval_batches = -(-len(dataset.split(run.config.data.eval_split)) // run.config.eval_batch_size)
    note = read_note(dataset.background) if dataset.background else None
    compute: dict[str, Any] = {
        "train_flops": flops_of(state.flops_spent),
        "prepare_flops": 0,
        "mask_flops": note[1].total if note else 0,
        "eval_flops": len(evaluations) * eval_batches * run.eval_flops,
        "flops_per_prediction": members * run.eval_flops // run.config.eval_batch_size
        + (note[1].flops_per_mask if note else 0),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "seconds": history[-1]["seconds"] if history else 0.0,
        "hardware": hardware(),
        "versions": versions(),
    }
    if speeds:
        compute["images_per_second"] = float(np.median(speeds))
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
        **run.task.summarize(rows),
        "compute": compute,
        "curve": curve,
        "config": run.config.to_dict(),
    }


def hardware() -> dict[str, Any]:
    """The devices and the host of this run."""
    device = jax.devices()[0]
    return {
        "platform": device.platform,
        "device": _cpu_name() if device.platform == "cpu" else device.device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "cpu_cores": os.cpu_count() or 1,
    }


def versions() -> dict[str, str]:
    """Python and the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for name in _VERSIONS.split():
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()

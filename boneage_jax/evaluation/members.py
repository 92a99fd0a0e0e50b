"""Evaluates one network, or an ensemble whose predictions are averaged."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from boneage_jax.config import load_config
from boneage_jax.data.source import Dataset, Split
from boneage_jax.evaluation.evaluate_split import evaluate_split, with_labels
from boneage_jax.evaluation.split_lock import openings
from boneage_jax.evaluation.summary import make_curve, make_report
from boneage_jax.inference.load_trained import Trained, average
from boneage_jax.inference.network import Rows
from boneage_jax.report.metric_writer import read_metrics
from boneage_jax.storage.layout import CONFIG
from boneage_jax.tasks.task import Task

_SUMMED = ("train_flops", "eval_flops", "parameters", "seconds")
_OWN_TASKS = ("bone_age", "hand_mask")  # `with_labels` adds their labels by itself


def predict_split(members: Sequence[Trained], split: Split) -> list[Rows]:
    """Returns the reported predictions of each member, in the order of the split."""
    network = members[0].network  # compiled once: members differ only in their weights
    keys = network.task.reported
    return [evaluate_split(network, m.variables, split, keys=keys)[1] for m in members]


def average_beside_labels(parts: Sequence[Rows], split: Split, task: Task) -> Rows:
    """Averages the predictions of the members and adds the labels of the split."""
    own = task.labels if task.name not in _OWN_TASKS else ()
    return with_labels(average(parts), split, own)


def report_members(
    members: Sequence[Trained],
    dataset: Dataset,
    split: str,
    rows: Rows,
    workdir: Path,
    records: Path | None = None,
) -> dict[str, Any]:
    """Builds the report of a network or an ensemble; costs are summed over the members.

    Args:
      members: see `boneage_jax.inference.load_trained.load_members`, at least one.
      dataset: data set that has the split.
      split: name of the split that `rows` belong to.
      rows: averaged predictions and labels.
      workdir: workdir of the ensemble or of the single run.
      records: folder with the record of test evaluations, `workdir` by default.

    Returns:
      See `boneage_jax.evaluation.summary.make_report`.
    """
    reports = []
    for member in members:
        history = [row for row in read_metrics(member.folder) if row["step"] <= member.step]
        report = make_report(
            member,
            dataset,
            split,
            rows,
            history,
            members=len(members),
            test_opened=len(openings(records or workdir)),
        )
        reports.append(report)
    report = reports[0]
    if len(members) == 1:
        return report
    report["compute"] |= {key: sum(each["compute"][key] for each in reports) for key in _SUMMED}
    report["config"] = load_config(workdir / CONFIG).to_dict()
    report["curve"] = make_curve(read_metrics(workdir), "mae", workdir)
    return report

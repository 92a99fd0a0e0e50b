"""Ensembles: one recipe trained with several seeds; the predictions are averaged.

The members are ordinary runs in WORKDIR/members/0, 1, ...; WORKDIR itself holds the joint report,
predictions, calibration and a metrics.jsonl with one line per member.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from boneage_jax.config import check_config
from boneage_jax.data.info import DataInfo
from boneage_jax.data.source import Split
from boneage_jax.datasets import open_training_data
from boneage_jax.evaluation.evaluate_split import atlas_of, corrected, with_labels
from boneage_jax.evaluation.members import average_beside_labels, predict_split
from boneage_jax.inference.atlas_ages import AtlasAges
from boneage_jax.inference.load_trained import Trained, average, load_members, member_count
from boneage_jax.inference.network import Rows
from boneage_jax.report.metric_writer import MetricWriter
from boneage_jax.report.run_report import read_report
from boneage_jax.runtime.parallel import is_first_process
from boneage_jax.runtime.watchdog import PATIENCE, waiting_for
from boneage_jax.storage.layout import REPORT, member_folder
from boneage_jax.storage.shared_workdir import catch_up
from boneage_jax.storage.workdir import check_config_of, claim_workdir
from boneage_jax.training.check_run import check_before_data
from boneage_jax.training.describe import say
from boneage_jax.training.final_report import final_report


def member_config(config: ConfigDict, number: int, mask_flops: int = 0) -> ConfigDict:
    """Returns the config of one member: its own seed and an equal share of the budget.

    Args:
      config: checked config of an ensemble, with more than one member.
      number: index of the member, from 0.
      mask_flops: FLOPs spent on the masks. Every member's budget includes them, although they are
        paid only once.
    """
    own, count = ConfigDict(config.to_dict()), member_count(config)
    own.members, own.member_flops = 1, 0.0
    own.seed = config.seed * count + number  # no two ensembles share a member
    if config.budget_flops:
        shared = (int(config.budget_flops) - mask_flops) // count
        own.budget_flops = float(max(shared, 0) + mask_flops)
    return check_config(own)


def train_members(
    config: ConfigDict,
    workdir: Path,
    train: Callable[..., dict[str, Any]],
    devices: Sequence[jax.Device] | None = None,
) -> dict[str, Any]:
    """Trains the members one after the other and writes the joint report.

    Finished members are skipped, interrupted ones are resumed.

    Args:
      config: checked config of an ensemble, with more than one member.
      workdir: workdir of the ensemble.
      train: `boneage_jax.train`, which calls this function.
      devices: see `boneage_jax.train`.

    Returns:
      Contents of report.json. Its curve has one entry per member: the error of the averaged
      predictions of all members so far.

    Raises:
      InputError: see `boneage_jax.train`.
    """
    waiting_for("the devices", PATIENCE)
    writes = is_first_process()
    begun = check_config_of(workdir, config)
    check_before_data(member_config(config, 0), devices, begun=begun)
    dataset = open_training_data(config)
    split = dataset.split(config.data.eval_split)
    info = DataInfo.of(dataset, dataset.split(config.data.train_split))
    claim_workdir(workdir, config, info, dataset.background, writes=writes)
    count, fresh = member_count(config), False
    for number in range(count):
        folder = member_folder(workdir, number)
        fresh |= not (folder / REPORT).exists()
        say(f"member {number + 1} of {count} in {folder}")
        train(member_config(config, number, info.mask_flops), folder, devices=devices)
    if (workdir / REPORT).exists() and not fresh:
        return read_report(workdir)

    waiting_for("the members", count * PATIENCE)
    catch_up(workdir)
    members = load_members(workdir, devices=devices)
    parts = predict_split(members, split)
    if writes:
        _write_curve(workdir, members, parts, split, atlas_of(dataset, config))
    rows = average_beside_labels(parts, split, members[0].network.task)
    return final_report(members, dataset, rows, workdir)


def _write_curve(
    workdir: Path,
    members: Sequence[Trained],
    parts: Sequence[Rows],
    split: Split,
    atlas: AtlasAges | None,
) -> None:
    """Writes metrics.jsonl: error and total cost of the first member, the first two, and so on."""
    step = flops = 0
    with MetricWriter(workdir, resume_step=None) as writer:
        for count, member in enumerate(members, start=1):
            rows = with_labels(average(parts[:count]), split)
            rows = corrected(rows, member.network.config, atlas=atlas)
            own = read_report(member.folder)
            step, flops = step + member.step, flops + own["compute"]["train_flops"]
            error = float(np.abs(rows["predicted_age"] - rows["true_age"]).mean())
            writer.write(step, {"validation/mae": error, "flops": flops})

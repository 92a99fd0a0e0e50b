"""Ensembles: one recipe trained from several seeds, whose predictions are averaged.

The members are ordinary runs in WORKDIR/members/0, 1, ...; WORKDIR itself holds what they say
together: report, predictions, calibration and one line of metrics.jsonl per member.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from boneage_jax.config import check_config, load_config
from boneage_jax.data.info import Facts
from boneage_jax.data.source import Dataset, Split, open_dataset
from boneage_jax.errors import InputError
from boneage_jax.evaluation.evaluate_split import Rows, corrected, evaluate_split, with_labels
from boneage_jax.evaluation.split_lock import openings
from boneage_jax.evaluation.summary import make_report
from boneage_jax.inference.calibration import CALIBRATION, Calibration
from boneage_jax.report.metric_writer import MetricWriter, read_metrics
from boneage_jax.report.run_report import write_report
from boneage_jax.runtime.parallel import process
from boneage_jax.runtime.watchdog import NO_LIMIT, PATIENCE, Watchdog
from boneage_jax.storage.bucket import open_workdir
from boneage_jax.storage.shared_workdir import catch_up
from boneage_jax.storage.workdir import Trained, claim_workdir, load_trained

_SUMMED = ("train_flops", "eval_flops", "parameters", "seconds")


def member_count(config: ConfigDict) -> int:
    """The number of networks that a run trains: `members`, or as `member_flops` shares a budget.

    A budget below twice `member_flops` goes to one network.
    """
    if not (config.member_flops and config.budget_flops):
        return int(config.members)
    return max(int(config.budget_flops // config.member_flops), 1)


def member_config(config: ConfigDict, number: int, mask_flops: int = 0) -> ConfigDict:
    """The config of one member: a seed of its own and an equal share of the budget.

    Args:
      config: of the ensemble, a checked config of more than one member.
      number: of the member, from 0.
      mask_flops: what the masks have cost; each member's budget holds them, all pay them once.
    """
    own, count = ConfigDict(config.to_dict()), member_count(config)
    own.members, own.member_flops = 1, 0.0
    own.seed = config.seed * count + number  # no two ensembles share a member
    if config.budget_flops:
        shared = (int(config.budget_flops) - mask_flops) // count
        own.budget_flops = float(max(shared, 0) + mask_flops)
    return check_config(own)


def load_members(folder: str | os.PathLike[str], **options: Any) -> list[Trained]:
    """The networks of a workdir: the members of an ensemble, or the one of an ordinary run.

    Args:
      folder: workdir of a training.
      **options: see `boneage_jax.storage.workdir.load_trained`.

    Raises:
      InputError: as `load_trained`; also where the members differ in network or data.
    """
    folder = open_workdir(folder)
    count = member_count(check_config(load_config(folder / "config.json")))
    if count == 1:
        return [load_trained(folder, **options)]
    found = [load_trained(_member_folder(folder, k), **options) for k in range(count)]
    for member in found[1:]:
        # One compiled step reads them all.
        models = [one.run.config.model.to_dict() for one in (found[0], member)]
        if models[0] != models[1] or member.run.facts != found[0].run.facts:
            raise InputError(f"{member.folder} differs from {found[0].folder}; train both anew")
    return found


def average(parts: Sequence[Rows]) -> Rows:
    """The mean of each array over the members; all hold the same keys in the same order."""
    return {key: np.mean([part[key] for part in parts], axis=0) for key in parts[0]}


def predict_split(
    members: Sequence[Trained], split: Split, tick: Callable[[], None] = lambda: None
) -> list[Rows]:
    """What each member says of a split: its reported predictions, in the order of the split.

    `tick` is called at each batch, a sign of life.
    """
    run = members[0].run  # compiled once: members differ in their weights alone
    keys = run.task.reported
    return [evaluate_split(run, m.state, split, keys=keys, tick=tick)[1] for m in members]


def report_members(
    members: Sequence[Trained], dataset: Dataset, split: str, rows: Rows, workdir: Path
) -> dict[str, Any]:
    """The report of an ensemble: costs are those of all members together.

    Args:
      members: see `load_members`, at least one.
      dataset: where `split` comes from.
      split: name of the split that `rows` belong to.
      rows: averaged predictions, and labels.
      workdir: of the ensemble, or of the one run.
    """
    reports = []
    for member in members:
        history = [row for row in read_metrics(member.folder) if row["step"] <= member.step]
        reports.append(
            make_report(
                *(member.run, member.state, dataset, split, rows, history),
                members=len(members),
                test_opened=len(openings(workdir)),
            )
        )
    report = reports[0]
    if len(members) == 1:
        return report
    report["compute"] |= {key: sum(each["compute"][key] for each in reports) for key in _SUMMED}
    report["config"] = load_config(workdir / "config.json").to_dict()
    report["curve"] = [
        {"step": row["step"], "flops": row["flops"], "mae": row["validation/mae"]}
        for row in read_metrics(workdir)
    ]
    return report


def train_members(
    config: ConfigDict,
    workdir: Path,
    train: Callable[..., dict[str, Any]],
    watch: Watchdog,
    devices: Sequence[jax.Device] | None = None,
) -> dict[str, Any]:
    """Trains the members one after the other, each as far as it is not done yet, and reports.

    Args:
      config: a checked config of more than one member.
      workdir: of the ensemble.
      train: `boneage_jax.train`, which calls this function.
      watch: told what is waited for, but by the members, which have one each.
      devices: see `boneage_jax.train`.

    Returns:
      The content of report.json; its curve has one entry per member: the error of all so far.

    Raises:
      InputError: see `boneage_jax.train`.
    """
    watch.waits_for("the devices", PATIENCE)
    writes = process()[0] == 0
    watch.waits_for("the preparation of the data", NO_LIMIT)
    dataset = open_dataset(config.data, lambda: watch.waits_for("the data", PATIENCE))
    facts = Facts.of(dataset, dataset.split(config.data.train_split))
    claim_workdir(workdir, config, facts, dataset.background, writes=writes)
    done = workdir / "report.json"
    fresh = False
    count = member_count(config)
    watch.rests()
    for number in range(count):
        folder = _member_folder(workdir, number)
        fresh |= not (folder / "report.json").exists()
        if writes:
            print(f"member {number + 1} of {count} in {folder}", file=sys.stderr)
        train(member_config(config, number, facts.mask_flops), folder, devices=devices)
    if done.exists() and not fresh:
        return json.loads(done.read_text())

    watch.waits_for("the members", count * PATIENCE)
    catch_up(workdir)
    members = load_members(workdir, devices=devices)
    split = dataset.split(config.data.eval_split)
    watch.waits_for("the report", PATIENCE)
    parts = predict_split(members, split, lambda: watch.waits_for("the report", PATIENCE))
    watch.rests()
    raw = with_labels(average(parts), split)
    if writes:
        method = config.bias_correction
        Calibration.fit(raw["predicted_age"], raw["true_age"], split.images(), method).save(
            workdir / CALIBRATION
        )
    rows = corrected(raw, config)
    if writes:
        _note_curve(workdir, members, parts, split)
    report = report_members(members, dataset, config.data.eval_split, rows, workdir)
    if writes:
        title = f"{count} x {config.model.name} on {dataset.name}"
        write_report(workdir, report, rows, title, split)
    return report


def _note_curve(
    workdir: Path, members: Sequence[Trained], parts: Sequence[Rows], split: Split
) -> None:
    """Writes metrics.jsonl: the error of one member, of two, and so on, at what they cost."""
    step = flops = 0
    with MetricWriter(workdir, resume_step=None) as writer:
        for count, member in enumerate(members, start=1):
            rows = corrected(with_labels(average(parts[:count]), split), member.run.config)
            own = json.loads((member.folder / "report.json").read_text())
            step, flops = step + member.step, flops + own["compute"]["train_flops"]
            error = float(np.abs(rows["predicted_age"] - rows["true_age"]).mean())
            writer.write(step, {"validation/mae": error, "flops": flops})


def _member_folder(folder: Path, number: int) -> Path:
    return folder / "members" / str(number)

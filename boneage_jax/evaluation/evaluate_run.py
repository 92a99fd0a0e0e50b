"""Evaluates the run of a workdir on a split of its data set."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from boneage_jax.config import LOCKED
from boneage_jax.data.info import DataInfo
from boneage_jax.data.source import Dataset, Split
from boneage_jax.datasets import open_dataset
from boneage_jax.errors import InputError
from boneage_jax.evaluation.evaluate_split import atlas_of, corrected
from boneage_jax.evaluation.members import average_beside_labels, predict_split, report_members
from boneage_jax.evaluation.split_lock import check_unlocked, note_opening
from boneage_jax.evaluation.stress_table import stress_rows
from boneage_jax.inference.calibration import Calibration
from boneage_jax.inference.load_trained import Trained, load_members
from boneage_jax.inference.network import Rows
from boneage_jax.inference.predictor import Predictor
from boneage_jax.report.metric_writer import read_metrics
from boneage_jax.report.run_report import read_report, write_report
from boneage_jax.storage.bucket import push
from boneage_jax.storage.layout import CALIBRATION, REPORT, checked_path, is_published, is_workdir
from boneage_jax.storage.safe_write import check_writable
from boneage_jax.storage.shipped import open_network
from boneage_jax.storage.workdir import read_run


def evaluate(
    workdir: str | Path,
    split: str = "validation",
    *,
    unlock_test: bool = False,
    raw_dir: str = "",
    data_dir: str = "",
    output: str | Path = "",
    stress: int = 0,
) -> dict[str, Any]:
    """Evaluates the selected checkpoint of a run and writes WORKDIR/evaluation/SPLIT/.

    Args:
      workdir: workdir of a finished or running training, or a published network.
      split: a split of the data set that the run was trained on.
      unlock_test: must be True if `split` is test; recorded in the workdir.
      raw_dir, data_dir: where the data is now, if it has moved since training.
      output: folder to write to instead; needed for a published network, which is not changed.
      stress: number of images, spread over the split, that are read under each of `STRESSES` too;
        the report gets a group `stress`.

    Returns:
      Contents of the written report.json.

    Raises:
      InputError: no run, no checkpoint, no such split, the test split without `unlock_test`, the
        data cannot be opened, or `stress` for a network without bone ages or calibration.
    """
    check_unlocked(split, unlock_test)
    workdir = open_network(workdir)
    if is_published(workdir) and not output:
        raise InputError(f"{workdir} is a published network, which stays as it is; give --output")
    folder = checked_path(output, "--output") if output else workdir / "evaluation" / split
    if is_workdir(folder) or is_published(folder):
        raise InputError(
            f"--output={folder} is a training or a network, whose own report this would replace; "
            "name another folder"
        )
    config, _ = read_run(workdir)
    _check_split(workdir, split)
    if stress:
        _check_stress(stress, config, workdir)
    data = ConfigDict(config.data.to_dict())
    data.raw_dir = raw_dir or data.raw_dir
    data.data_dir = data_dir or data.data_dir
    # Before data are prepared, which may take an hour, and anything is compiled.
    members = load_members(workdir)
    network = members[0].network
    for trained in {workdir, *(member.folder for member in members)}:
        read_metrics(trained)
    dataset = open_dataset(data)
    part = dataset.split(split)
    trained_on = re.split(r"[\[+]", data.train_split)[0]  # a split may be sliced or summed
    if not raw_dir and trained_on in dataset.splits:
        info = DataInfo.of(dataset, dataset.split(data.train_split))
        if info != network.info:
            raise InputError(
                f"{dataset.name}/{dataset.config} is not the data of the run in {workdir} ({info} "
                f"now, {network.info} then); name its folder: --raw_dir=DIR or --data_dir=DIR"
            )
    records = folder if is_published(workdir) else workdir
    check_writable(folder)  # before anything is compiled
    rows = average_beside_labels(predict_split(members, part), part, network.task)
    if "predicted_age" in rows:
        rows = _as_reported(rows, workdir, config, dataset, split)
    if split in LOCKED:
        ages = {"predicted_age", "true_age"} <= rows.keys()
        found = {"mae": float(abs(rows["predicted_age"] - rows["true_age"]).mean())} if ages else {}
        note_opening(records, split, members[0].step, found)
    report = report_members(members, dataset, split, rows, workdir, records)
    if stress:
        report["stress"] = _under_stress(members, workdir, part.sample(stress))
    title = f"{config.model.name} on {dataset.name}, {split} split"
    write_report(folder, report, rows, title, part)
    push(workdir)
    return report


def _as_reported(
    rows: Rows, workdir: Path, config: ConfigDict, dataset: Dataset, split: str
) -> Rows:
    """Returns ages as the run reports them; a running training has no calibration yet.

    Raises:
      InputError: a correction is needed that only the end of the training fits.
    """
    path = workdir / CALIBRATION
    correction = None
    if config.bias_correction != "none" and split != config.data.eval_split:  # not fitted to it
        correction = Calibration.load(path).correction
    atlas = None
    if config.test_atlas:
        atlas = Calibration.load(path).atlas if path.exists() else None
        if atlas is None or atlas.deviation != config.test_atlas:  # still that of another reading
            atlas = atlas_of(dataset, config)
    return corrected(rows, config, correction, atlas)


def _check_stress(stress: int, config: ConfigDict, workdir: Path) -> None:
    """Refuses what cannot be read under stress, before data are prepared."""
    if stress < 1:
        raise InputError(f"--stress={stress} must be at least 1 image")
    if config.task != "bone_age":
        raise InputError(f"--stress reads bone ages; {workdir} has a network for {config.task}")
    if config.data.masks:
        raise InputError(
            f"--stress needs whole radiographs; the run in {workdir} stores them without background"
        )
    if not (workdir / CALIBRATION).exists():
        raise InputError(f"--stress tells what is accepted; {workdir} has no {CALIBRATION} yet")


def _under_stress(members: Sequence[Trained], workdir: Path, part: Split) -> dict[str, Any]:
    """Returns the group `stress` of a report: the stored images, changed, as `predict` reads them.

    The images are squares already; a stress that turns one turns what was stretched with it.
    """
    male = part.labels.get("male", np.full(len(part), -1))
    ages = part.labels["bone_age"].astype(float)
    rows = stress_rows(Predictor(members, workdir), [*part.images()], ages, [*map(int, male)])
    return {"images": len(part), "rows": [*rows]}


def _check_split(workdir: Path, split: str) -> None:
    """Refuses a split that the report of a finished run does not list, before data are prepared."""
    if not (workdir / REPORT).exists():
        return
    report = read_report(workdir)["dataset"]
    known = report.get("splits")
    if isinstance(known, dict) and split not in known:
        raise InputError(
            f"{report.get('name')}/{report.get('config')} has no split {split!r}; it has "
            f"{', '.join(known)}"
        )

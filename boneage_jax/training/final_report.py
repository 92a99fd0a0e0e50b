"""The end of a training run: calibration and report, for single networks and ensembles."""

import itertools
from pathlib import Path
from typing import Any

from boneage_jax.data.source import Dataset, Split
from boneage_jax.evaluation.evaluate_split import corrected
from boneage_jax.evaluation.members import report_members
from boneage_jax.evaluation.split_lock import openings
from boneage_jax.evaluation.summary import make_report
from boneage_jax.inference.calibration import Calibration
from boneage_jax.inference.load_trained import Trained
from boneage_jax.inference.network import Rows
from boneage_jax.inference.view import View
from boneage_jax.report.metric_writer import read_metrics
from boneage_jax.report.run_report import read_report, write_report
from boneage_jax.runtime.parallel import is_first_process
from boneage_jax.runtime.watchdog import waiting_for_nothing
from boneage_jax.storage.layout import CALIBRATION
from boneage_jax.storage.safe_write import writing
from boneage_jax.training.fit_view import make_view

_STATISTICS = 400  # images of the training split that `accepted` is fitted to, beside validation


def final_report(
    members: list[Trained], dataset: Dataset, rows: Rows, workdir: Path
) -> dict[str, Any]:
    """Writes calibration, predictions, figures, report.html and report.json of a workdir.

    Args:
      members: the trained network, or the members of an ensemble.
      dataset: data set of the run.
      rows: uncorrected predictions on the validation split with their labels, averaged over the
        members.
      workdir: workdir of the run or the ensemble.

    Returns:
      Contents of report.json.

    Raises:
      InputError: a file cannot be written, or a result is not finite.
    """
    waiting_for_nothing()  # no peers to wait for; figures may take long
    config = members[0].network.config
    split = dataset.split(config.data.eval_split)
    fitted_on, rows = rows, corrected(rows, config)
    if len(members) == 1:  # the full history, whichever checkpoint was selected
        history, opened = read_metrics(workdir), len(openings(workdir))
        (trained,) = members
        split_name = config.data.eval_split
        report = make_report(trained, dataset, split_name, rows, history, test_opened=opened)
    else:
        report = report_members(members, dataset, config.data.eval_split, rows, workdir)
    if not is_first_process():
        return report
    if config.task == "bone_age":
        train = dataset.split(config.data.train_split)
        view, view_flops = _view(members, train, split)
        if view_flops:
            report["compute"]["view_flops"] = view_flops
        calibration = Calibration.fit(
            fitted_on["predicted_age"],
            fitted_on["true_age"],
            itertools.chain(split.images(), train.sample(_STATISTICS).images()),
            config.bias_correction,
            training_ages=train.labels["bone_age"],
            view=view,
        )
        with writing(workdir / CALIBRATION):
            calibration.save(workdir / CALIBRATION)
    count = f"{len(members)} x " if len(members) > 1 else ""
    title = f"{count}{config.model.name} on {dataset.name}"
    write_report(workdir, report, rows, title, split)
    return report


def _view(members: list[Trained], train: Split, validation: Split) -> tuple[View | None, int]:
    """Returns the view network and its FLOPs; an ensemble takes that of its first member."""
    if len(members) > 1:
        reports = [read_report(member.folder) for member in members]
        spent = sum(report["compute"].get("view_flops", 0) for report in reports)
        return Calibration.load(members[0].folder / CALIBRATION).view, spent
    (trained,) = members
    return make_view(train, validation, trained.network.config, trained.flops_spent)

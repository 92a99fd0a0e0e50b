"""The end of a training run: calibration and report, for single networks and ensembles."""

import itertools
from pathlib import Path
from typing import Any

from boneage_jax.data.mask_cost import read_note
from boneage_jax.data.source import Dataset, Split
from boneage_jax.errors import InputError
from boneage_jax.evaluation.evaluate_split import atlas_of, corrected, known_sexes
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
from boneage_jax.storage.layout import BACKGROUND, CALIBRATION
from boneage_jax.storage.safe_write import writing
from boneage_jax.storage.shipped import open_network
from boneage_jax.training.describe import say
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
    atlas = atlas_of(dataset, config)
    fitted_on, rows = rows, corrected(rows, config, atlas=atlas)
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
        view, view_flops = view_of(members, train, split)
        if view_flops:
            report["compute"]["view_flops"] = view_flops
        calibration = Calibration.fit(
            fitted_on["predicted_age"],
            fitted_on["true_age"],
            itertools.chain(split.images(), train.sample(_STATISTICS).images()),
            config.bias_correction,
            training_ages=train.labels["bone_age"],
            view=view,
            atlas=atlas,
            p_male=known_sexes(rows, config),
        )
        with writing(workdir / CALIBRATION):
            calibration.save(workdir / CALIBRATION)
    count = f"{len(members)} x " if len(members) > 1 else ""
    title = f"{count}{config.model.name} on {dataset.name}"
    write_report(workdir, report, rows, title, split)
    return report


def view_of(members: list[Trained], train: Split, validation: Split) -> tuple[View | None, int]:
    """Fits a view network, or takes that of the first member of an ensemble.

    A training too short or too small for one of its own keeps that of the network it began from.

    Args:
      members: the trained network, or the members of an ensemble.
      train, validation: splits of radiographs.

    Returns:
      (view network, or None; FLOPs of its fit).
    """
    if len(members) > 1:
        reports = [read_report(member.folder) for member in members]
        spent = sum(report["compute"].get("view_flops", 0) for report in reports)
        return Calibration.load(members[0].folder / CALIBRATION).view, spent
    (trained,) = members
    config = trained.network.config
    view, flops = make_view(train, validation, config, trained.flops_spent)
    if view is None and config.init_from:
        view = _view_at(config.init_from, trained.network.info.background)
    return view, flops


def _view_at(source: str, background: str) -> View | None:
    """Returns the view network of the network that a training began from, if it knows such images.

    Args:
      source: `config.init_from`.
      background: what was done to the background of the images of this training.
    """
    try:
        folder = open_network(source)
        note = read_note(folder / BACKGROUND)
        view = Calibration.load(folder / CALIBRATION).view
    except InputError as error:  # the training is done; only this is lost
        say(f"no view network: {error}")
        return None
    if view is None or (note[0] if note else "") != background:
        return None
    say(f"view network: that of {source}")
    return view

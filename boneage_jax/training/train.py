"""A training run from top to bottom: data, network and steps, loop, report."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from boneage_jax.config import check_config
from boneage_jax.data.info import DataInfo
from boneage_jax.data.loader import train_batches
from boneage_jax.data.source import Dataset, describe
from boneage_jax.datasets import open_training_data
from boneage_jax.errors import InputError
from boneage_jax.evaluation.members import average_beside_labels, predict_split
from boneage_jax.inference.calibration import MIN_IMAGES
from boneage_jax.inference.load_trained import Trained, member_count
from boneage_jax.report.metric_writer import MetricWriter
from boneage_jax.report.run_report import read_report
from boneage_jax.runtime.parallel import is_first_process, process
from boneage_jax.runtime.preemption import Stopping
from boneage_jax.runtime.process_setup import prepared_process
from boneage_jax.runtime.supervision import supervised
from boneage_jax.runtime.watchdog import NO_LIMIT, PATIENCE, waiting_for
from boneage_jax.storage.bucket import push, workdir_in_use
from boneage_jax.storage.checkpoints import Checkpoints
from boneage_jax.storage.layout import REPORT
from boneage_jax.storage.shared_workdir import check_same_step, check_shared
from boneage_jax.storage.state import TrainState, flops_of
from boneage_jax.storage.workdir import check_config_of, claim_workdir
from boneage_jax.storage.workdir_lock import locked_workdir
from boneage_jax.training.check_run import check_before_data, check_start_weights
from boneage_jax.training.describe import describe_run, say
from boneage_jax.training.ensemble import train_members
from boneage_jax.training.final_report import final_report
from boneage_jax.training.initialize import initial_state
from boneage_jax.training.loop import Loop
from boneage_jax.training.run import Run, build_run
from boneage_jax.training.step_log import StepLog


def train(
    config: ConfigDict | Mapping[str, Any],
    workdir: str | os.PathLike[str],
    *,
    devices: Sequence[jax.Device] | None = None,
) -> dict[str, Any]:
    """Trains a network, or resumes the run in `workdir`.

    Args:
      config: see `boneage_jax.config.base_config`, or its dict; recipes are in `configs/`.
      workdir: receives config.json, metrics.jsonl, checkpoints/, tensorboard/, report.json,
        report.html, figures/ and predictions.csv; for an ensemble, checkpoints go to members/K/.
        A local folder or gs://BUCKET/PATH, see `boneage_jax.storage.bucket`.
      devices: devices to use, all by default.

    Returns:
      Contents of report.json.

    Raises:
      InputError: an invalid config, a workdir in use, damaged data, a full disk or a non-finite
        loss; the message is one line.
      Stopped: the run was asked to end early, see `boneage_jax.runtime.preemption`; `PeerLost` if
        another process of the job is gone. A run that stalls ends the process, see
        `boneage_jax.runtime.watchdog`.
    """
    config = check_config(config)
    limits = {key: float(config[key]) for key in ("max_seconds", "stall_seconds")}
    with supervised(**limits) as stopping:
        waiting_for("the workdir", PATIENCE)
        with workdir_in_use(workdir) as folder, locked_workdir(folder), _devices():
            if member_count(config) > 1:
                return train_members(config, folder, train, devices)
            return _train_network(config, folder, devices, stopping)


@contextlib.contextmanager
def _devices() -> Iterator[None]:
    waiting_for("the devices", PATIENCE)
    with prepared_process():
        yield


def warn_of_few(config: ConfigDict, dataset: Dataset) -> None:
    """Says where a fine-tuning has too few radiographs for its interval and its rejection."""
    splits = (config.data.train_split, config.data.eval_split)
    count = sum(len(dataset.split(name)) for name in splits)
    if config.init_from and config.task == "bone_age" and count < MIN_IMAGES:
        say(
            f"{count} radiographs are few to train on: {MIN_IMAGES} and more can tell whether it "
            "helped, 100 are better; boneage_jax.calibrate fits an interval without training"
        )


def _train_network(
    config: ConfigDict, workdir: Path, devices: Sequence[jax.Device] | None, stopping: Stopping
) -> dict[str, Any]:
    check_before_data(config, devices, begun=check_config_of(workdir, config))
    dataset = open_training_data(config)
    info = DataInfo.of(dataset, dataset.split(config.data.train_split))
    _claim(workdir, config, info, dataset)
    say(*describe(dataset))
    warn_of_few(config, dataset)

    waiting_for("the model", PATIENCE)
    run = build_run(config, info, devices)
    with Checkpoints(workdir, run.task.metric, info=info, config=config) as checkpoints:
        start = check_same_step(checkpoints.newest_step)
        if start is not None and start > run.total_steps:
            raise InputError(
                f"{workdir} holds a checkpoint of step {start}, this run ends at step "
                f"{run.total_steps}; choose another --workdir"
            )
        if start == run.total_steps and (workdir / REPORT).exists():
            say(f"{workdir} holds this run, finished at step {start}; nothing is left to do")
            return read_report(workdir)
        if start is None:
            waiting_for("the pretrained weights", PATIENCE)
            check_start_weights(run)  # before the minutes that compiling takes
        waiting_for("the model", PATIENCE)
        describe_run(run, workdir)
        state, loop = _make_steps(run, workdir, dataset, checkpoints, start, stopping)
        step = checkpoints.step_to_use(config.select)
        if step != run.total_steps:
            state = checkpoints.restore(step, run.parallel.as_global(state))
    spent = flops_of(state.flops_spent)
    trained = [Trained(run.network, state.eval_variables, spent, step, workdir)]
    split = dataset.split(config.data.eval_split)
    known = loop.predictions if step == run.total_steps else None
    parts = predict_split(trained, split) if known is None else [known]
    rows = average_beside_labels(parts, split, run.task)
    report = final_report(trained, dataset, rows, workdir)
    run.parallel.check_compiled_once()
    return report


def _claim(workdir: Path, config: ConfigDict, info: DataInfo, dataset: Dataset) -> None:
    """Makes the folder the workdir of this run, consistently on all processes of the job."""
    claim_workdir(workdir, config, info, dataset.background, writes=is_first_process())
    push(workdir)  # fails on a bucket that is not writable, before any compute is spent
    waiting_for("the data of the other processes", NO_LIMIT)
    check_shared(workdir)


def _make_steps(
    run: Run,
    workdir: Path,
    dataset: Dataset,
    checkpoints: Checkpoints,
    start: int | None,
    stopping: Stopping,
) -> tuple[TrainState, Loop]:
    """Trains from the current step to the last; returns the final state and what made it."""
    config = run.config
    batches = train_batches(
        dataset.split(config.data.train_split),
        run.task.labels,
        config.batch_size,
        seed=config.seed,
        put=run.parallel.put_batch,
        process=process(),
        threads=config.data.threads,
        buffer=config.data.buffer,
    )
    try:
        if start != run.total_steps:
            say("compiling the train step")
            waiting_for("the compilation of the step", PATIENCE)
            with stopping.deferred():
                compiled = run.compile_ahead(start or 0)
        state = initial_state(run, workdir, checkpoints, batches, start, train)
        if start != run.total_steps:
            waiting_for("the compilation of the step", PATIENCE)
            with stopping.deferred():
                compiled()
        spent = flops_of(state.flops_spent) - run.flops_until(start or 0)
        eval_split = dataset.split(config.data.eval_split)
        with MetricWriter(workdir, resume_step=start) as writer, stopping.deferred():
            log = StepLog(run, writer, start or 0, spent)
            loop = Loop(run, log, checkpoints, eval_split, stopping, start or 0)
            state = loop.run_steps(state, batches)
    except InputError:
        with contextlib.suppress(InputError):
            checkpoints.wait()  # checkpoints still being written are valid
        raise
    finally:
        batches.close()  # type: ignore[attr-defined]  # stops the reading threads
    checkpoints.wait()
    return state, loop

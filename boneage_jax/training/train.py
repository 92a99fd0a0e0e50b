"""A training, from top to bottom: data, model, loop, report."""

import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from clu import parameter_overview
from ml_collections import ConfigDict

from boneage_jax.config import check_config
from boneage_jax.data.info import Facts
from boneage_jax.data.loader import train_batches
from boneage_jax.data.source import describe, open_dataset
from boneage_jax.errors import InputError
from boneage_jax.evaluation.evaluate_split import corrected, evaluate_split, with_labels
from boneage_jax.evaluation.split_lock import openings
from boneage_jax.evaluation.summary import make_report
from boneage_jax.inference.calibration import CALIBRATION, Calibration
from boneage_jax.report.metric_writer import MetricWriter, read_metrics
from boneage_jax.report.run_report import write_report
from boneage_jax.runtime.distributed import peers
from boneage_jax.runtime.heartbeat import Pulse
from boneage_jax.runtime.parallel import process
from boneage_jax.runtime.preemption import Stopping, listen
from boneage_jax.runtime.watchdog import NO_LIMIT, PATIENCE, Watchdog
from boneage_jax.state import TrainState, flops_of
from boneage_jax.storage.bucket import in_use, open_workdir, push
from boneage_jax.storage.checkpoints import Checkpoints
from boneage_jax.storage.safe_write import writing
from boneage_jax.storage.shared_workdir import catch_up, check_same_step, check_shared
from boneage_jax.storage.workdir import claim_workdir
from boneage_jax.training.ensemble import member_count, train_members
from boneage_jax.training.initialize import pretraining, start_from, with_pretrained_backbone
from boneage_jax.training.loop import Loop
from boneage_jax.training.run import Run, build_run, check_labels, fresh_state


def train(
    config: ConfigDict, workdir: str | Path, *, devices: Sequence[jax.Device] | None = None
) -> dict[str, Any]:
    """Trains a network, or goes on with the run that `workdir` holds.

    Args:
      config: see `boneage_jax.config.base_config`; recipes lie in `configs/`.
      workdir: receives config.json, metrics.jsonl, checkpoints/, tensorboard/, report.json,
        report.html, figures/ and predictions.csv; of an ensemble, members/K/ receive the
        checkpoints. A folder or gs://BUCKET/PATH, see `boneage_jax.storage.bucket`.
      devices: the devices to use, all by default.

    Returns:
      The content of report.json.

    Raises:
      InputError: a wrong config, damaged data, a full disk, or a loss that is not finite, in one
        line.
      Stopped: asked to end early, see `boneage_jax.runtime.preemption`; a `PeerLost` where another process of
        the job is gone. A run that stands still ends the process, see `boneage_jax.runtime.watchdog`.
    """
    config = check_config(config)
    # From here on, so that a process that dies while the run starts up is noticed, too.
    watch = Watchdog(float(config.stall_seconds))
    with listen(float(config.max_seconds)) as stopping, Pulse(), watch, peers():
        watch.waits_for("the workdir", PATIENCE)
        folder = open_workdir(workdir)
        try:
            with in_use(folder):
                report = _train(config, folder, devices, stopping, watch)
        except BaseException:
            watch.rests()
            with contextlib.suppress(InputError):
                push(folder)
            raise
        watch.rests()
        push(folder)
        return report


def _train(
    config: ConfigDict,
    workdir: Path,
    devices: Sequence[jax.Device] | None,
    stopping: Stopping,
    watch: Watchdog,
) -> dict[str, Any]:
    if member_count(config) > 1:
        return train_members(config, workdir, train, watch, devices)
    watch.waits_for("the devices", PATIENCE)
    index, count = process()

    # ----- data
    watch.waits_for("the preparation of the data", NO_LIMIT)
    dataset = open_dataset(config.data, lambda: watch.waits_for("the data", PATIENCE))
    train_split = dataset.split(config.data.train_split)
    eval_split = dataset.split(config.data.eval_split)
    facts = Facts.of(dataset, train_split)
    check_labels(config.task, dataset)
    claim_workdir(workdir, config, facts, dataset.background, writes=index == 0)
    push(workdir)  # a bucket that cannot be written ends the run here, before it cost anything
    watch.waits_for("the data of the other processes", NO_LIMIT)
    check_shared(workdir)
    _say(*describe(dataset))

    # ----- model and steps
    watch.waits_for("the model", PATIENCE)
    run = build_run(config, facts, devices)
    watch.waits_for("the checkpoint", PATIENCE)
    checkpoints = Checkpoints(workdir, run.task.metric)
    start = check_same_step(checkpoints.newest_step)
    if start == run.total_steps and (workdir / "report.json").exists():
        _say(f"{workdir} holds this run, finished at step {start}; nothing is left to do")
        checkpoints.close()
        return json.loads((workdir / "report.json").read_text())
    watch.waits_for("the model", PATIENCE)
    state = fresh_state(config, facts, run.task, run.optimizer)
    _describe_model(run, state, workdir)
    if start is None and config.pretrain.data:
        _say(f"pre-training on {config.pretrain.data} in {workdir / 'pretrain'}")
        watch.rests()  # it has a watch of its own
        train(pretraining(config), workdir / "pretrain", devices=devices)
        watch.waits_for("the pre-trained network", PATIENCE)
        catch_up(workdir)
        state = start_from(state, workdir / "pretrain", config.task)
    elif start is None and config.init_from:
        state = start_from(state, config.init_from, config.task)
    elif start is None and config.model.pretrained:
        state = with_pretrained_backbone(state, config)
    state = run.parallel.put_state(state)
    batches = train_batches(
        train_split,
        run.task.labels,
        config.batch_size,
        seed=config.seed,
        put=run.parallel.put_batch,
        process=(index, count),
        threads=config.data.threads,
        buffer=config.data.buffer,
    )
    if start is not None:
        watch.waits_for("the checkpoint", PATIENCE)
        state = checkpoints.restore(start, state, batches)
        _say(f"going on from the checkpoint of step {start}")

    # ----- loop
    with MetricWriter(workdir, resume_step=start) as writer:
        spent = flops_of(state.flops_spent) - run.flops_until(start or 0)
        loop = Loop(*(run, writer, checkpoints, eval_split, stopping, watch), start or 0, spent)
        try:
            with stopping.deferred():
                state = loop.run_steps(state, batches)
        except InputError:
            watch.waits_for("the checkpoint", PATIENCE)
            with contextlib.suppress(InputError):
                checkpoints.wait()  # what is on its way to the disk is still good
            raise
        finally:
            batches.close()  # type: ignore[attr-defined]  # stops the reading threads
    watch.waits_for("the checkpoint", PATIENCE)
    checkpoints.wait()

    # ----- report
    step = checkpoints.step_to_use(config.select)
    if step != run.total_steps:
        watch.waits_for("the best checkpoint", PATIENCE)
        state = checkpoints.restore(step, state)
    checkpoints.close()

    def tick() -> None:
        watch.waits_for("the report", PATIENCE)

    tick()
    _, rows = evaluate_split(run, state, eval_split, keys=run.task.reported, tick=tick)
    watch.rests()
    rows = with_labels(rows, eval_split)
    history = read_metrics(workdir)
    fitted_on, rows = rows, corrected(rows, config)
    report = make_report(
        *(run, state, dataset, config.data.eval_split, rows, history),
        test_opened=len(openings(workdir)),
    )
    if index == 0:
        if config.task == "bone_age":
            calibration = Calibration.fit(
                fitted_on["predicted_age"],
                fitted_on["true_age"],
                eval_split.images(),
                config.bias_correction,
            )
            with writing(workdir / CALIBRATION):
                calibration.save(workdir / CALIBRATION)
        write_report(workdir, report, rows, f"{config.model.name} on {dataset.name}", eval_split)
    if any(traces != 1 for traces in run.parallel.compilations.values()):
        raise RuntimeError(f"a step was compiled more than once: {run.parallel.compilations}")
    return report


def _describe_model(run: Run, state: TrainState, workdir: Path) -> None:
    if process()[0] != 0:
        return
    params = {"params": state.params}
    overview = parameter_overview.get_parameter_overview(params, include_stats=False)
    with writing(workdir / "parameters.txt"):
        (workdir / "parameters.txt").write_text(overview + "\n")
    short = parameter_overview.get_parameter_overview(params, include_stats=False, max_lines=8)
    config = run.config
    _say(
        short,
        f"{config.model.name}: all parameters in {workdir / 'parameters.txt'}",
        f"{run.total_steps} steps of {config.batch_size} images on {run.parallel.device_count} "
        f"{run.parallel.devices[0].platform} device(s) by {config.parallel}; "
        f"{run.train_flops / config.batch_size / 1e9:.3g} GFLOP per image trained, "
        f"{run.flops_until(run.total_steps) / 1e12:.3g} TFLOP in all",
    )
    if not run.trainable.all:
        _say(f"{len(run.trainable.frozen)} layers of the backbone are frozen")
    for phase in run.phases if len(run.phases) > 1 else ():
        what = "the heads" if phase.stretch.heads_only else "all that trains"
        _say(f"  steps {phase.start}-{phase.stop}: {what} at {phase.stretch.size} px")


def _say(*lines: str) -> None:
    if process()[0] == 0:
        print(*lines, sep="\n", file=sys.stderr, flush=True)

"""The loop, from top to bottom: data, step, evaluate, checkpoint, report.

The host never waits for the step it has just started: it stays two steps ahead, and the metrics
of a log line are fetched one line later.
"""

import collections
import contextlib
import dataclasses
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from clu import parameter_overview
from ml_collections import ConfigDict
from tqdm import tqdm

from boneage_jax.calibration import CALIBRATION, Calibration
from boneage_jax.checkpoint import Checkpoints
from boneage_jax.cluster import peers
from boneage_jax.config import check_config
from boneage_jax.data.loader import train_batches
from boneage_jax.data.source import Split, describe, open_dataset
from boneage_jax.disk import writing
from boneage_jax.ensemble import member_count, train_members
from boneage_jax.errors import InputError, Stopped
from boneage_jax.evaluation import corrected, evaluate_split, with_labels
from boneage_jax.facts import Facts
from boneage_jax.nonfinite import Guard, Watched, all_finite
from boneage_jax.optimizer import make_schedule, peak_rate
from boneage_jax.parallel import process
from boneage_jax.pulse import Pulse
from boneage_jax.recipe import Run, build_run, check_labels, fresh_state
from boneage_jax.report.write import write_report
from boneage_jax.report.writer import MetricWriter, read_metrics
from boneage_jax.split_lock import openings
from boneage_jax.state import TrainState, flops_of
from boneage_jax.stopping import Stopping, listen
from boneage_jax.summary import make_report
from boneage_jax.transfer import pretraining, start_from, with_pretrained_backbone
from boneage_jax.watchdog import PATIENCE, Watchdog
from boneage_jax.workdir import claim_workdir, local_folder

_RUN_AHEAD = 2  # steps queued on the device; more only holds more batches in memory


def train(
    config: ConfigDict, workdir: str | Path, *, devices: Sequence[jax.Device] | None = None
) -> dict[str, Any]:
    """Trains a network, or goes on with the run that `workdir` holds.

    Args:
      config: see `boneage_jax.config.base_config`; recipes lie in `configs/`.
      workdir: receives config.json, metrics.jsonl, checkpoints/, tensorboard/, report.json,
        report.html, figures/ and predictions.csv; of an ensemble, members/K/ receive the
        checkpoints.
      devices: the devices to use, all by default.

    Returns:
      The content of report.json.

    Raises:
      InputError: a wrong config, damaged data, a full disk, or a loss that is not finite, in one
        line.
      Stopped: asked to end early, see `boneage_jax.stopping`; a `PeerLost` where another process of
        the job is gone. A run that stands still ends the process, see `boneage_jax.watchdog`.
    """
    config = check_config(config)
    with listen(float(config.max_seconds)) as stopping:
        return _train(config, local_folder(workdir), devices, stopping)


def _train(
    config: ConfigDict,
    workdir: Path,
    devices: Sequence[jax.Device] | None,
    stopping: Stopping,
) -> dict[str, Any]:
    if member_count(config) > 1:
        return train_members(config, workdir, train, devices)
    index, count = process()

    # ----- data
    dataset = open_dataset(config.data)
    train_split = dataset.split(config.data.train_split)
    eval_split = dataset.split(config.data.eval_split)
    facts = Facts.of(dataset, train_split)
    check_labels(config.task, dataset)
    claim_workdir(workdir, config, facts, dataset.background, writes=index == 0)
    _say(*describe(dataset))

    # ----- model and steps
    run = build_run(config, facts, devices)
    checkpoints = Checkpoints(workdir, run.task.metric)
    start = checkpoints.latest_step()
    if start == run.total_steps and (workdir / "report.json").exists():
        _say(f"{workdir} holds this run, finished at step {start}; nothing is left to do")
        checkpoints.close()
        return json.loads((workdir / "report.json").read_text())
    state = fresh_state(config, facts, run.task, run.optimizer)
    _describe_model(run, state, workdir)
    if start is None and config.pretrain.data:
        _say(f"pre-training on {config.pretrain.data} in {workdir / 'pretrain'}")
        train(pretraining(config), workdir / "pretrain", devices=devices)
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
        state = checkpoints.restore(start, state, batches)
        _say(f"going on from the checkpoint of step {start}")

    with Pulse(), Watchdog(float(config.stall_seconds)) as watch, peers():
        # ----- loop
        with MetricWriter(workdir, resume_step=start) as writer:
            spent = flops_of(state.flops_spent) - run.flops_until(start or 0)
            loop = _Loop(
                *(run, writer, checkpoints, eval_split, stopping, watch), start or 0, spent
            )
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
        watch.waits_for("the report", PATIENCE)
        step = checkpoints.step_to_use(config.select)
        if step != run.total_steps:
            state = checkpoints.restore(step, state)
        checkpoints.close()
        _, rows = evaluate_split(run, state, eval_split, keys=run.task.reported)
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


class _Loop:
    """The running part of a training: what is logged, evaluated and saved when."""

    def __init__(
        self,
        run: Run,
        writer: MetricWriter,
        checkpoints: Checkpoints,
        eval_split: Split,
        stopping: Stopping,
        watch: Watchdog,
        start: int,
        spent: int,
    ):
        self._spent = spent  # FLOPs of pre-training, and of steps that were rolled back
        self._watch = watch
        self._made = 0  # steps since this start, those rolled back included
        self._run, self._writer, self._checkpoints = run, writer, checkpoints
        self._eval_split, self._stopping, self._step = eval_split, stopping, start
        # All learning rates at once: asking the schedule at each step would sync the host.
        settings = run.config.optimizer
        schedule = make_schedule(
            settings, run.total_steps, peak_rate(settings, run.config.batch_size)
        )
        self._rates = np.asarray(jax.vmap(schedule)(np.arange(run.total_steps + 1)))
        history = writer.last_row or {}
        self._seconds_before = float(history.get("seconds", 0.0))
        counts = (int(history.get(key, 0)) for key in ("nonfinite_steps", "rollbacks"))
        self._guard = Guard(run.config, *counts)
        self._is_finite = jax.jit(all_finite)
        self._began = time.monotonic()
        self._pending: dict[str, Any] | None = None
        self._window = (start, 0.0)  # where the measured stretch of steps began; 0 is not yet

    def run_steps(self, state: TrainState, batches: Any) -> TrainState:
        """Steps from where the run stands to its end."""
        run, config = self._run, self._run.config
        metrics = empty = run.parallel.put_state(
            Watched.begin(run.task.metrics_type.empty(), self._guard.total)
        )
        queue: collections.deque[Any] = collections.deque()
        ahead = 0 if _shares_cores(run) else _RUN_AHEAD
        first, notice, compiled = self._step, False, set()
        if first == run.total_steps:
            return state
        if config.nonfinite == "rollback" and self._checkpoints.latest_step() is None:
            self._save(state, batches, None)  # something to go back to
        with tqdm(
            total=run.total_steps,
            initial=first,
            unit="step",
            desc="compiling",
            mininterval=0.2 if sys.stderr.isatty() else 20.0,
            dynamic_ncols=True,
            disable=process()[0] != 0,
        ) as bar:
            while self._step < run.total_steps:
                train_step = run.train_step_at(self._step)
                self._watch.waits_for("the next batch")
                batch = next(batches)
                if id(train_step) in compiled:
                    self._watch.waits_for("the step")
                else:
                    self._watch.waits_for("the step and its compilation", PATIENCE)
                    compiled.add(id(train_step))
                state, metrics = train_step(state, metrics, batch)
                self._step += 1
                self._made += 1
                queue.append(metrics.total)
                while len(queue) > ahead or (queue and self._step == first + 1):
                    jax.block_until_ready(queue.popleft())
                bar.update()
                if self._step == first + 1:  # the clock starts after compilation
                    self._window = (self._step, time.monotonic())
                    bar.set_description_str("training")
                    bar.unpause()
                evaluate = self._step % run.evaluate_every == 0 or self._step == run.total_steps
                save = bool(config.checkpoint_every) and (self._step % config.checkpoint_every == 0)
                self._watch.waits_for("the step or the other processes")
                notice |= self._checkpoints.reached_preemption(first + self._made)
                stop = self._stopping.reason_for_all(self._step, config.log_every) or (
                    "preemption notice" if notice else ""
                )
                save |= bool(stop)
                bad = False
                if self._step % config.log_every == 0 or evaluate or save:
                    bad = self._log(metrics, bar, done=self._step - len(queue))
                    metrics = metrics.emptied(empty)
                if (evaluate or save) and not bad:
                    bad = self._flush(bar)
                    if not bad and not self._is_finite(state):
                        bad = self._guard.judge_state(self._step)
                if bad:
                    queue.clear()
                    state = self._roll_back(state, bar)
                    self._guard.total = int(metrics.total)  # those thrown away with it, too
                    metrics = metrics.emptied(empty)
                    continue
                if evaluate or save:
                    values = self._evaluate(state, bar) if evaluate else None
                    self._save(state, batches, values)
                    queue.clear()  # saving has waited for the state
                    self._window = (self._step, time.monotonic())
                if stop and self._step < run.total_steps:
                    self._watch.waits_for("the checkpoint", PATIENCE)
                    self._checkpoints.wait()
                    raise Stopped(
                        f"{stop}: saved at step {self._step} of {run.total_steps}; the same "
                        "command goes on from there"
                    )
        return state

    def _save(self, state: TrainState, batches: Any, values: dict[str, float] | None) -> None:
        self._watch.waits_for("the checkpoint", PATIENCE)
        if values is not None and self._run.task.metric not in values:
            values = None  # not finite: this checkpoint cannot be the best
        state = self._run.parallel.as_global(state)
        self._checkpoints.save(self._step, state, batches, values)

    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._began

    def _flops(self) -> int:
        return self._spent + self._run.flops_until(self._step)

    def _roll_back(self, state: TrainState, bar: tqdm) -> TrainState:
        """The state of the last checkpoint; the data goes on from where it is.

        What the steps in between have cost stays counted.
        """
        self._watch.waits_for("the checkpoint", PATIENCE)
        self._checkpoints.wait()
        step = self._checkpoints.latest_step()
        assert step is not None  # the run began with one
        state = self._run.parallel.as_global(state)
        lost, spent = self._flops(), state.flops_spent
        state = dataclasses.replace(self._checkpoints.restore(step, state), flops_spent=spent)
        if process()[0] == 0:
            bar.write(
                f"step {self._step}: not finite; back to the checkpoint of step {step}, on with "
                f"the next images (roll-back {self._guard.rollbacks})",
                file=sys.stderr,
            )
            self._writer.rewind(step)
        self._step, self._pending = step, None
        self._spent += lost - self._flops()
        self._window = (step, time.monotonic())
        bar.n = step
        return state

    def _log(self, metrics: Watched, bar: tqdm, done: int) -> bool:
        """Notes the metrics of the last steps, and writes those noted before.

        `done` is the last step known to have ended: speed counts ended steps only. Returns what
        `_flush` does of those noted before.
        """
        bad = self._flush(bar)
        began, clock = self._window
        now = time.monotonic()
        steps = done - began
        self._pending = {
            "metrics": metrics,
            "step": self._step,
            "flops": self._flops(),
            "seconds": self._seconds(),
        }
        if steps > 0 and clock:
            self._pending["images_per_second"] = (
                steps * self._run.config.batch_size / max(now - clock, 1e-9)
            )
        self._window = (done, now)
        return bad

    def _flush(self, bar: tqdm) -> bool:
        """Writes the metrics noted last; returns whether the run shall go back (see `Guard`)."""
        if self._pending is None:
            return False
        row, self._pending = self._pending, None
        watched, step = row.pop("metrics"), row.pop("step")
        values = {key: float(value) for key, value in watched.metrics.compute().items()}
        bad = self._guard.judge(
            step, int(watched.total), int(watched.streak), first=int(watched.first)
        )
        row["learning_rate"] = float(self._rates[max(step - 1 - self._guard.skipped, 0)])
        known = {key: value for key, value in values.items() if math.isfinite(value)}
        if process()[0] == 0:
            row |= self._guard.row()
            self._writer.write(step, {f"train/{k}": v for k, v in known.items()} | row)
        shown = {"loss": f"{values['loss']:.3f}"}
        if "images_per_second" in row:
            shown["images/s"] = f"{row['images_per_second']:.1f}"
        if self._guard.total:
            shown["not finite"] = str(self._guard.total)
        bar.set_postfix(shown, refresh=False)
        return bad

    def _evaluate(self, state: TrainState, bar: tqdm) -> dict[str, float]:
        def tick() -> None:
            self._watch.waits_for("the evaluation", PATIENCE)

        tick()
        values, _ = evaluate_split(self._run, state, self._eval_split, tick=tick)
        known = {key: value for key, value in values.items() if math.isfinite(value)}
        row = {f"validation/{key}": value for key, value in known.items()}
        row |= {"flops": self._flops(), "seconds": self._seconds()} | self._guard.row()
        if process()[0] == 0:
            self._writer.write(self._step, row)
            shown = ", ".join(f"{key} {value:.3f}" for key, value in known.items())
            bar.write(f"step {self._step}: validation {shown}", file=sys.stderr)
        return known


def _shares_cores(run: Run) -> bool:
    """Simulated CPU devices share the host's cores: queued steps can miss XLA's rendezvous."""
    return run.parallel.devices[0].platform == "cpu" and run.parallel.device_count > 1


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

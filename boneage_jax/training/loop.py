"""The steps of a training: what is logged, evaluated, saved and taken back when.

The host never waits for the step it has just started: it stays two steps ahead, and the metrics
of a log line are fetched one line later.
"""

import collections
import dataclasses
import math
import sys
import time
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from boneage_jax.data.source import Split
from boneage_jax.errors import Stopped
from boneage_jax.evaluation.evaluate_split import evaluate_split
from boneage_jax.report.metric_writer import MetricWriter
from boneage_jax.runtime.parallel import process
from boneage_jax.runtime.preemption import Stopping
from boneage_jax.runtime.watchdog import PATIENCE, Watchdog
from boneage_jax.state import TrainState
from boneage_jax.storage.checkpoints import Checkpoints
from boneage_jax.training.nonfinite import Guard, Watched, all_finite
from boneage_jax.training.optimizer import make_schedule, peak_rate
from boneage_jax.training.run import Run

_RUN_AHEAD = 2  # steps queued on the device; more only holds more batches in memory


class Loop:
    """The running part of a training: what is logged, evaluated and saved when.

    Args:
      run: the run.
      writer: its diary.
      checkpoints: where it saves.
      eval_split: the images it is evaluated on.
      stopping: asked after each step whether to end.
      watch: told what is waited for.
      start: updates done before this start.
      spent: FLOPs beyond those of the updates done: pre-training, and steps rolled back.
    """

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
        self._spent = spent
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
        """Steps from where the run stands to its end.

        Raises:
          InputError: steps that are not finite, as `config.nonfinite` has it, or a full disk.
          Stopped: asked to end early; a checkpoint is saved.
        """
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
        if _on_cpu(self._run):  # the writing would take the cores from the steps beside it
            self._checkpoints.wait()

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
            step, int(watched.total), int(watched.longest), first=int(watched.first)
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
    return _on_cpu(run) and run.parallel.device_count > 1


def _on_cpu(run: Run) -> bool:
    return run.parallel.devices[0].platform == "cpu"

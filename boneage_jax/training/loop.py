"""Training loop: logging, evaluation, checkpointing, rollback.

The host does not wait for the step it has just started: it runs two steps ahead, except on several
simulated CPU devices.
"""

import collections
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
from tqdm import tqdm

from boneage_jax.data.source import Split
from boneage_jax.errors import Stopped
from boneage_jax.evaluation.evaluate_split import evaluate_split
from boneage_jax.inference.network import Rows
from boneage_jax.runtime.parallel import is_first_process
from boneage_jax.runtime.preemption import Stopping
from boneage_jax.runtime.progress import progress
from boneage_jax.runtime.watchdog import PATIENCE, waiting_for
from boneage_jax.storage.checkpoints import Checkpoints
from boneage_jax.storage.state import TrainState
from boneage_jax.training.nonfinite import Watched, is_finite
from boneage_jax.training.run import Run
from boneage_jax.training.step_log import StepLog

_RUN_AHEAD = 2  # steps queued on the device; more would only hold more batches in memory


class Loop:
    """Training loop of one run, from its current step to the last.

    Attributes:
      predictions: what the task reports of the evaluation split after the last step, in its order;
        None if this start did not come to that evaluation.
    """

    def __init__(
        self,
        run: Run,
        log: StepLog,
        checkpoints: Checkpoints,
        eval_split: Split,
        stopping: Stopping,
        start: int,
    ):
        """Prepares the loop to start or resume at step `start`.

        Args:
          run: the run.
          log: receives metrics and validation results.
          checkpoints: receives the checkpoints.
          eval_split: split to evaluate on.
          stopping: queried after each step.
          start: updates done before this start.
        """
        self._run, self._log, self._checkpoints = run, log, checkpoints
        self._eval_split, self._stopping = eval_split, stopping
        self._first = self._step = start
        self._made = 0  # steps since this start, including those rolled back
        self._notice = False  # a preemption notice was received
        self._compiled: set[int] = set()  # ids of the step functions that have run
        self._queue: collections.deque[Any] = collections.deque()  # steps that may still run
        self.predictions: Rows | None = None
        self._ahead = 0 if _shares_cores(run) else _RUN_AHEAD

    def run_steps(self, state: TrainState, batches: Any) -> TrainState:
        """Trains to the last step and returns the final state.

        Raises:
          InputError: non-finite steps, subject to `config.nonfinite`, or a full disk.
          Stopped: the run was asked to end early; a checkpoint has been saved.
        """
        run, config, log = self._run, self._run.config, self._log
        if self._step == run.total_steps:
            return state
        metrics = empty = run.parallel.put_state(
            Watched.begin(run.task.metrics_type.empty(), log.guard.total)
        )
        if config.nonfinite == "rollback" and self._checkpoints.latest_step() is None:
            self._save(state, batches, None)  # a state to roll back to
        with self._progress() as bar:
            while self._step < run.total_steps:
                state, metrics = self._make_step(state, metrics, batches, bar)
                evaluate = self._step % run.evaluate_every == 0 or self._step == run.total_steps
                stop = self._reason_to_stop()
                save = bool(stop) or bool(
                    config.checkpoint_every and self._step % config.checkpoint_every == 0
                )
                bad = False
                if self._step % config.log_every == 0 or evaluate or save:
                    done = self._step - len(self._queue)
                    bad = log.note(metrics, self._step, done, bar)
                    metrics = metrics.emptied(empty)
                if (evaluate or save) and not bad:
                    bad = log.flush(bar)
                    if not bad and not is_finite(state):
                        bad = log.guard.judge_state(self._step)
                if bad:
                    state = self._roll_back(state, bar)
                    log.guard.total = int(metrics.total)  # including those discarded with it
                    metrics = metrics.emptied(empty)
                    continue
                if evaluate or save:
                    values = self._evaluate(state, bar) if evaluate else None
                    self._save(state, batches, values)
                    self._queue.clear()  # saving waited for the state
                    log.restart_clock(self._step)
                if stop and self._step < run.total_steps:
                    self._checkpoints.wait()
                    raise Stopped(
                        f"{stop}: saved at step {self._step} of {run.total_steps}; the same "
                        "command goes on from there"
                    )
        return state

    def _progress(self) -> tqdm:
        return progress(
            total=self._run.total_steps,
            initial=self._first,
            unit="step",
            desc="compiling" if self._run.parallel.mode == "pmap" else "training",
            disable=not is_first_process(),
        )

    def _make_step(
        self, state: TrainState, metrics: Watched, batches: Iterator[Any], bar: tqdm
    ) -> tuple[TrainState, Watched]:
        train_step = self._run.train_step_at(self._step)
        waiting_for("the next batch")
        batch = next(batches)
        if id(train_step) in self._compiled:
            waiting_for("the step")
        else:
            waiting_for("the step and its compilation", PATIENCE)
            self._compiled.add(id(train_step))
        state, metrics = train_step(state, metrics, batch)
        self._step += 1
        self._made += 1
        is_first = self._step == self._first + 1
        self._queue.append(metrics.total)
        while len(self._queue) > self._ahead or (self._queue and is_first):
            jax.block_until_ready(self._queue.popleft())
        bar.update()
        if is_first:  # the clock starts after compilation
            self._log.restart_clock(self._step)
            bar.set_description_str("training")
            bar.unpause()
        return state, metrics

    def _reason_to_stop(self) -> str:
        """Returns why to end after this step, "" to continue; the same on all processes."""
        waiting_for("the step or the other processes")
        self._notice |= self._checkpoints.reached_preemption(self._first + self._made)
        asked = self._stopping.reason_for_all(self._step, self._run.config.log_every)
        return asked or ("preemption notice" if self._notice else "")

    def _save(self, state: TrainState, batches: Any, values: dict[str, float] | None) -> None:
        if values is not None and self._run.task.metric not in values:
            values = None  # not finite: this checkpoint cannot be selected as best
        state = self._run.parallel.as_global(state)
        self._checkpoints.save(self._step, state, batches, values)
        if _on_cpu(self._run):  # writing would compete with the steps for the cores
            self._checkpoints.wait()

    def _roll_back(self, state: TrainState, bar: tqdm) -> TrainState:
        """Restores the last checkpoint; the data iterator is not rewound."""
        self._queue.clear()
        self._checkpoints.wait()
        step = self._checkpoints.latest_step()
        assert step is not None  # saved before the first step
        like = self._run.parallel.as_global(state)
        restored = self._checkpoints.restore(step, like)
        self._log.rewind(self._step, step, bar)
        self._step = bar.n = step
        return dataclasses.replace(restored, flops_spent=like.flops_spent)

    def _evaluate(self, state: TrainState, bar: tqdm) -> dict[str, float]:
        run = self._run
        keys = run.task.reported if self._step == run.total_steps else ()
        values, rows = evaluate_split(
            run.network, state.eval_variables, self._eval_split, keys=keys
        )
        self.predictions = rows if keys else None
        return self._log.evaluated(self._step, values, bar)


def _shares_cores(run: Run) -> bool:
    """Returns whether simulated CPU devices share cores: queued steps can miss XLA's rendezvous."""
    return _on_cpu(run) and run.parallel.device_count > 1


def _on_cpu(run: Run) -> bool:
    return run.parallel.devices[0].platform == "cpu"

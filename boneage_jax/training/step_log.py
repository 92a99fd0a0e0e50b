"""Log lines of a training run, written one line late so that no step waits for them."""

import math
import sys
import time
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from boneage_jax.report.metric_writer import MetricWriter
from boneage_jax.runtime.parallel import is_first_process
from boneage_jax.training.nonfinite import Guard, Watched
from boneage_jax.training.optimizer import make_schedule, peak_rate
from boneage_jax.training.run import Run


class StepLog:
    """Writes metrics, speed, seconds and FLOPs to metrics.jsonl and to the progress bar.

    The metrics of a line are fetched from the device when the next line is recorded: by then their
    steps have finished.

    Attributes:
      guard: handles non-finite steps.
    """

    def __init__(self, run: Run, writer: MetricWriter, start: int, spent: int):
        """Starts the log of a run, or resumes it.

        Args:
          run: the run.
          writer: metric writer of the workdir.
          start: updates done before this start.
          spent: FLOPs beyond those of the updates done: pre-training and rolled-back steps.
        """
        self._run, self._writer, self._spent = run, writer, spent
        # All learning rates at once: evaluating the schedule at each step would sync the host.
        settings, config = run.config.optimizer, run.config
        schedule = make_schedule(settings, run.total_steps, peak_rate(settings, config.batch_size))
        self._rates = np.asarray(jax.vmap(schedule)(np.arange(run.total_steps + 1)))
        history = writer.last_row or {}
        self._seconds_before = float(history.get("seconds") or 0.0)
        counts = (int(history.get(key) or 0) for key in ("nonfinite_steps", "rollbacks"))
        self.guard = Guard(config, total=next(counts), rollbacks=next(counts))
        self._began = time.monotonic()
        self._pending: dict[str, Any] | None = None
        self._window = (start, 0.0)  # step and time the measurement began; 0: not yet

    def flops(self, step: int) -> int:
        """Returns the FLOPs spent up to `step`, including steps that were rolled back."""
        return self._spent + self._run.flops_until(step)

    def restart_clock(self, step: int) -> None:
        """Restarts the speed measurement at `step`.

        Called after compilation, evaluation or saving, which do not count.
        """
        self._window = (step, time.monotonic())

    def note(self, metrics: Watched, step: int, done: int, bar: tqdm) -> bool:
        """Records the metrics of the last steps and writes those recorded before.

        Args:
          metrics: metrics of the steps since the last call, still on the device.
          step: updates started.
          done: updates known to have finished; speed counts only these.
          bar: progress bar to update.

        Returns:
          See `flush`.

        Raises:
          InputError: see `flush`.
        """
        bad = self.flush(bar)
        began, clock = self._window
        now = time.monotonic()
        self._pending = {
            "metrics": metrics,
            "step": step,
            "flops": self.flops(step),
            "seconds": self._seconds(),
        }
        if done > began and clock:
            self._pending["images_per_second"] = (
                (done - began) * self._run.config.batch_size / max(now - clock, 1e-9)
            )
        self._window = (done, now)
        return bad

    def flush(self, bar: tqdm) -> bool:
        """Writes the metrics recorded last.

        Returns:
          Whether the run must roll back to its last checkpoint, see `Guard`.

        Raises:
          InputError: non-finite steps, subject to `config.nonfinite`, or a full disk.
        """
        if self._pending is None:
            return False
        row, self._pending = self._pending, None
        watched, step = row.pop("metrics"), row.pop("step")
        values = {key: float(value) for key, value in watched.metrics.compute().items()}
        bad = self.guard.judge(
            step, int(watched.total), int(watched.longest), first=int(watched.first)
        )
        row["learning_rate"] = float(self._rates[max(step - 1 - self.guard.skipped, 0)])
        if is_first_process():
            row |= self.guard.row()
            train = {f"train/{key}": value for key, value in _finite(values).items()}
            self._writer.write(step, train | row)
        shown = {"loss": f"{values['loss']:.3f}"}
        if "images_per_second" in row:
            shown["images/s"] = f"{row['images_per_second']:.1f}"
        if self.guard.total:
            shown["not finite"] = str(self.guard.total)
        bar.set_postfix(shown, refresh=False)
        return bad

    def evaluated(self, step: int, values: dict[str, float], bar: tqdm) -> dict[str, float]:
        """Writes validation metrics and returns the finite ones."""
        known = _finite(values)
        row = {f"validation/{key}": value for key, value in known.items()}
        row |= {"flops": self.flops(step), "seconds": self._seconds()} | self.guard.row()
        if is_first_process():
            self._writer.write(step, row)
            shown = ", ".join(f"{key} {value:.3f}" for key, value in known.items())
            bar.write(f"step {step}: validation {shown}", file=sys.stderr)
        return known

    def rewind(self, step: int, back_to: int, bar: tqdm) -> None:
        """Drops the rows after `back_to`; the cost of the steps up to `step` stays counted."""
        if is_first_process():
            bar.write(
                f"step {step}: not finite; back to the checkpoint of step {back_to}, on with "
                f"the next images (roll-back {self.guard.rollbacks})",
                file=sys.stderr,
            )
            self._writer.rewind(back_to)
        self._pending = None
        self._spent += self.flops(step) - self.flops(back_to)
        self.restart_clock(back_to)

    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._began


def _finite(values: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in values.items() if math.isfinite(value)}

"""Checkpoints of a run through orbax: the state and the data iterator, best and latest.

Saving is asynchronous and atomic: orbax writes to a temporary folder and renames it, so a kill
while saving costs nothing that was saved before.
"""

import contextlib
import functools
import json
import logging as standard_logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grain
import grain.checkpoint
import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from boneage_jax.errors import InputError, Stopped
from boneage_jax.runtime.distributed import is_lost_peer
from boneage_jax.state import TrainState
from boneage_jax.storage.bucket import checkpoint_folder, push
from boneage_jax.storage.checksums import checksums, first_damaged
from boneage_jax.storage.safe_write import cannot_write, is_passing, is_refused_write

_CHECKSUMS, _POSITION = "checksums", "position"  # in the metadata of a checkpoint


class Checkpoints:
    """The checkpoints of one workdir.

    Args:
      workdir: the run's folder; checkpoints go to its `checkpoints/`, in the bucket where it is
        the mirror of one.
      metric: the validation metric that ranks checkpoints, lower is better.
      read_only: for evaluation and prediction; nothing is created.
    """

    def __init__(self, workdir: Path, metric: str, *, read_only: bool = False):
        # Orbax reports each save at INFO, each cast at WARNING, and before it raises at ERROR.
        logging.set_verbosity(logging.FATAL)
        self._workdir, self._folder = workdir, checkpoint_folder(workdir)
        self._metric = metric
        best = BestN(
            get_metric_fn=lambda metrics: -metrics[metric],
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy([LatestN(1), best]),
            best_fn=lambda metrics: -metrics[metric],
            create=not read_only,
            read_only=read_only,
        )
        try:
            self._manager = ocp.CheckpointManager(self._folder, options=options)
        except (ValueError, KeyError, TypeError, OSError) as error:
            reason = str(error).strip().splitlines()[0][:200] if str(error) else repr(error)
            raise InputError(
                f"{self._folder} cannot be read: a checkpoint in it is damaged ({reason}); remove "
                "that step, or choose another --workdir"
            ) from error

    def save(
        self,
        step: int,
        state: TrainState,
        iterator: grain.DatasetIterator,
        metrics: dict[str, float] | None,
    ) -> None:
        """Starts saving `state` and the position of `iterator` under `step`.

        Args:
          step: optimizer updates done.
          state: device arrays; copied to the host before this returns.
          iterator: the training batches.
          metrics: validation metrics, None where there was no evaluation at this step.

        Raises:
          InputError: the disk is full or refuses; also of the save before, which ran meanwhile.
          Stopped: the bucket does not answer for now.
        """
        try:
            push(self._workdir)  # the log up to this step, before the step can be gone back to
        except InputError as error:
            print(f"{error}; trying again at the next checkpoint", file=sys.stderr)
        with self._disk_errors():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    data=grain.checkpoint.CheckpointSave(iterator),
                ),
                metrics=metrics,
                # In the metadata: as an item of its own it would leave an unawaited coroutine
                # behind where the disk is full.
                custom_metadata={
                    _CHECKSUMS: checksums(state),
                    _POSITION: iterator.get_state(),
                },
            )

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def newest_step(self) -> int | None:
        """The same, after a fresh look at the folder, where another process may have been."""
        self._manager.reload()
        return self.latest_step()

    def step_to_use(self, select: str) -> int:
        """The step that evaluation and prediction read.

        Args:
          select: 'latest' or 'best'.

        Raises:
          InputError: there is no checkpoint.
        """
        step = self._manager.best_step() if select == "best" else None
        step = self._manager.latest_step() if step is None else step
        if step is None:
            raise InputError(f"{self._folder} holds no checkpoint; train first or name its workdir")
        return step

    def restore(
        self, step: int, like: TrainState, iterator: grain.DatasetIterator | None = None
    ) -> TrainState:
        """The state saved under `step`; `iterator` is moved to where it stood.

        Any number of devices and processes can restore what any other number has saved.

        Args:
          step: one that `latest_step` or `step_to_use` named.
          like: a state, or its shapes with shardings: restored arrays go to those devices.
          iterator: the training batches, None to leave them out.

        Raises:
          InputError: the checkpoint is damaged or is that of another model.
        """
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        items = ocp.args.Composite(state=ocp.args.StandardRestore(shapes))
        _leave_out_late_reads()
        try:
            state = self._manager.restore(step, args=items).state
            saved = self._manager.metadata(step).custom_metadata or {}
            if iterator is not None:
                self._move(iterator, step, saved.get(_POSITION))
        except Exception as error:  # orbax raises a bare Exception where a read fails
            if is_lost_peer(error):
                raise  # the checkpoint is well
            reason = str(error).strip().splitlines()[0][:200] if str(error) else repr(error)
            raise InputError(
                f"{self._folder}/{step} cannot be restored: it is damaged or was written by "
                f"another model or version ({reason})"
            ) from error
        known = saved.get(_CHECKSUMS)  # older checkpoints have none
        damaged = first_damaged(state, known) if known else ""
        if damaged:
            raise InputError(
                f"{self._folder}/{step} is damaged: state{damaged} is not what was saved; "
                "remove that step, or train again"
            )
        return state

    def _move(self, iterator: grain.DatasetIterator, step: int, saved: Any) -> None:
        """Moves `iterator` to where it stood at `step`.

        Grain writes a file per process and wants as many again. All hold the same number of
        batches, whatever the number of processes, so one of them will do.
        """
        files = sorted(epath.Path(self._folder / str(step) / "data").glob("process_*-of-*.json"))
        position = json.loads(files[0].read_text()) if files else None
        shape = jax.tree.map(type, iterator.get_state())
        if jax.tree.map(type, position) != shape or (saved is not None and position != saved):
            raise ValueError("the position in the training images is not what was saved")
        iterator.set_state(position)

    def wait(self) -> None:
        """Returns once everything is on disk; raises what a background save raised.

        Raises:
          InputError: the disk is full or refuses.
        """
        with self._disk_errors():
            self._manager.wait_until_finished()

    def reached_preemption(self, step: int) -> bool:
        """Whether the job shall save and end behind `step`: a machine of it is being taken away.

        Asks the preemption service of `jax.distributed`, without a wait; every process must ask
        behind every step, with rising numbers, and all are answered alike. False where there is
        one process.
        """
        return self._manager.reached_preemption(step)

    def close(self) -> None:
        """Waits and frees the background threads."""
        self.wait()
        self._manager.close()

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # orbax and TensorStore raise errors of many types
            if is_refused_write(error):
                raise cannot_write(self._folder, error) from error
            if isinstance(self._folder, Path) or is_lost_peer(error):
                raise
            if not is_passing(error):
                raise
            reason = (str(error).strip() or repr(error)).splitlines()[0][:200]
            raise Stopped(
                f"{self._folder} cannot be written ({reason}); the same command goes on from the "
                "last checkpoint",
                alone=True,
            ) from error


@functools.cache  # once, and for good: they may come long after the restore
def _leave_out_late_reads() -> None:
    """No tracebacks of reads that fail after orbax has given up the whole restore.

    Arrays are read side by side. When one of them is damaged, orbax closes the event loop, and each
    further failing read then reports, when it is thrown away, itself or the closed loop: noise
    behind the one clear line.
    """
    before = sys.unraisablehook

    def quiet(unraisable: Any) -> None:
        late = "coroutine object _read" in repr(unraisable.object)  # orbax's, of a single array
        if not late and "Event loop is closed" not in str(unraisable.exc_value):
            before(unraisable)

    def is_another(record: standard_logging.LogRecord) -> bool:
        text = record.getMessage()
        return "exception was never retrieved" not in text or "orbax" not in text

    sys.unraisablehook = quiet
    standard_logging.getLogger("asyncio").addFilter(is_another)

"""Checkpoints of a run with orbax: the state and the data iterator, best and latest.

Saving is asynchronous and atomic: orbax writes to a temporary folder and renames it, so a kill
during a save loses nothing that was saved before.
"""

import contextlib
import gc
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from ml_collections import ConfigDict
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from boneage_jax.data.info import DataInfo
from boneage_jax.errors import InputError, Stopped
from boneage_jax.runtime.distributed import is_lost_peer
from boneage_jax.runtime.watchdog import PATIENCE, waiting_for
from boneage_jax.storage.bucket import checkpoint_folder, push
from boneage_jax.storage.checkpoint_metadata import (
    CHECKSUMS,
    POSITION,
    check_metadata,
    described,
    kept_paths,
    metadata_of,
    read_metadata,
)
from boneage_jax.storage.checksums import as_field, checksums, first_damaged
from boneage_jax.storage.quiet_orbax import clear_frames, without_late_errors, without_orbax
from boneage_jax.storage.safe_write import cannot_write, is_passing, is_refused_write
from boneage_jax.storage.state import TrainState, Tree, merge, select

if TYPE_CHECKING:
    import grain


class Checkpoints:
    """The checkpoints of one workdir; also a context manager, which closes them.

    Args:
      workdir: folder of the run; checkpoints go to its `checkpoints/`, in the bucket if the folder
        mirrors one.
      metric: the validation metric that ranks checkpoints, lower is better.
      info: properties of the training data, kept in each checkpoint; one saved with others is not
        restored.
      config: config of the run. What it says of the network, as far as the shapes of the arrays do
        not tell, is kept and compared likewise.
      read_only: for evaluation and prediction; creates nothing.
      alone: this process reads for itself, while the others of its job do something else.
    """

    def __init__(
        self,
        workdir: Path,
        metric: str,
        *,
        info: DataInfo | None = None,
        config: ConfigDict | None = None,
        read_only: bool = False,
        alone: bool = False,
    ):
        waiting_for("the checkpoint", PATIENCE)
        self._quiet = contextlib.ExitStack()
        self._quiet.enter_context(without_orbax())
        if not read_only:
            self._quiet.enter_context(without_late_errors)  # of writes in the background
        self._workdir, self._folder = workdir, checkpoint_folder(workdir)
        self._metric = metric
        self._description = described(info, config)
        self._metadata: dict[int, dict[str, Any]] = {}
        best = BestN(
            get_metric_fn=lambda metrics: -metrics[metric],
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        me = jax.process_index()
        among = ocp.options.MultiprocessingOptions(me, {me}, f"process_{me}") if alone else None
        options = ocp.CheckpointManagerOptions(
            multiprocessing_options=among or ocp.options.MultiprocessingOptions(),
            preservation_policy=AnyPreservationPolicy([LatestN(1), best]),
            best_fn=lambda metrics: -metrics[metric],
            create=not read_only,
            read_only=read_only,
        )
        try:
            _check_steps(self._folder)
            self._manager = ocp.CheckpointManager(self._folder, options=options)
        except (ValueError, KeyError, TypeError, OSError) as error:
            self._quiet.close()
            reason = str(error).strip().splitlines()[0][:200] if str(error) else repr(error)
            raise InputError(
                f"{self._folder} cannot be read: a checkpoint in it is damaged ({reason}); remove "
                "that step, or choose another --workdir"
            ) from error

    def save(
        self,
        step: int,
        state: TrainState,
        iterator: "grain.DatasetIterator",
        metrics: dict[str, float] | None,
    ) -> None:
        """Starts saving `state` and the position of `iterator` under `step`.

        Args:
          step: training steps done.
          state: device arrays; copied to the host before this returns.
          iterator: the training batches.
          metrics: validation metrics, None if there was no evaluation at this step.

        Raises:
          InputError: the disk is full or rejects the write, possibly that of the previous save.
          Stopped: the bucket is temporarily unavailable.
        """
        from grain.checkpoint import CheckpointSave  # half a second that prediction saves

        waiting_for("the checkpoint", PATIENCE)
        try:
            push(self._workdir)  # the log up to this step, before a run resumes there
        except InputError as error:
            print(f"{error}; trying again at the next checkpoint", file=sys.stderr)
        with self._disk_errors():
            if isinstance(self._folder, Path) and jax.process_index() == 0:
                _check_room(self._workdir)
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    data=CheckpointSave(iterator),
                ),
                metrics=metrics,
                # In the metadata: a separate item would leave an unawaited coroutine if the
                # disk is full.
                custom_metadata=metadata_of(
                    step, checksums(state), iterator.get_state(), self._description
                ),
            )

    def latest_step(self) -> int | None:
        """Returns the step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def newest_step(self) -> int | None:
        """Returns the latest step after rereading the folder, which other processes write to."""
        self._manager.reload()
        return self.latest_step()

    def step_to_use(self, select: str) -> int:
        """Returns the step for evaluation and prediction.

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
        self, step: int, like: TrainState, iterator: "grain.DatasetIterator | None" = None
    ) -> TrainState:
        """Restores the state saved under `step` and the position of `iterator`.

        The number of devices and processes may differ from that at the save.

        Args:
          step: a step from `latest_step` or `step_to_use`.
          like: a state, or its shapes with shardings: restored arrays go to those devices.
          iterator: the training batches, None to leave them out.

        Raises:
          InputError: the checkpoint is damaged or belongs to another model.
        """
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        return self._restore(step, ocp.args.StandardRestore(shapes), iterator)

    def restore_network(self, step: int, like: Tree) -> tuple[Tree, jax.Array]:
        """Restores what evaluation and prediction need, and nothing of the optimizer.

        Args:
          step: as for `restore`.
          like: {'params', 'batch_stats'} of the network: shapes with shardings.

        Returns:
          ({'params', 'batch_stats'} with averaged parameters if the run kept them; `flops_spent`,
          see `TrainState`).

        Raises:
          InputError: as `restore`.
        """
        with self._restore_errors(step):
            kept = kept_paths(self._saved_metadata(step), self._folder, step)
        need = {as_field(jax.tree_util.keystr(p)) for p, _ in _leaves(like)}
        more = {path for path in kept if path.startswith((".params[", ".batch_stats["))} - need
        if more:
            raise InputError(
                f"{self._folder}/{step} cannot be restored: it was written by another model or "
                f"version, with {min(more)[1:]}"
            )

        def averaged(path: tuple[str, ...]) -> bool:
            return ".ema_params" + "".join(f"[{key!r}]" for key in path) in kept

        placed = jax.tree.leaves(like["params"])[0].sharding
        wanted: dict[str, Any] = {
            "params": select(like["params"], lambda path: not averaged(path)),
            "ema_params": select(like["params"], averaged),
            "batch_stats": like["batch_stats"],
            "flops_spent": jax.ShapeDtypeStruct((2,), jax.numpy.uint32, sharding=placed),
        }
        wanted = {key: value for key, value in wanted.items() if jax.tree.leaves(value)}
        arguments = ocp.checkpoint_utils.construct_restore_args(wanted)
        found = self._restore(
            step,
            ocp.args.PyTreeRestore(item=wanted, restore_args=arguments, partial_restore=True),
            part=True,
        )
        params = merge(found.get("params", {}), found.get("ema_params", {}))
        return {"params": params, "batch_stats": found.get("batch_stats", {})}, found["flops_spent"]

    def _restore(
        self,
        step: int,
        arguments: Any,
        iterator: "grain.DatasetIterator | None" = None,
        *,
        part: bool = False,
    ) -> Any:
        waiting_for("the checkpoint", PATIENCE)
        with self._restore_errors(step):
            saved = self._saved_metadata(step)
        check_metadata(saved, step, self._description, self._folder, self._workdir)
        with self._restore_errors(step):
            state = self._manager.restore(step, args=ocp.args.Composite(state=arguments)).state
            if iterator is not None:
                self._move(iterator, step, saved.get(POSITION))
        for path, leaf in _leaves(state):
            if not isinstance(leaf, jax.Array):  # orbax leaves parts that it lacks as they are
                raise InputError(
                    f"{self._folder}/{step} cannot be restored: it was written by another model "
                    f"or version, without {jax.tree_util.keystr(path)}"
                )
        known = saved.get(CHECKSUMS)  # older checkpoints have none
        damaged = first_damaged(state, known, part=part) if known else ""
        if damaged:
            raise InputError(
                f"{self._folder}/{step} is damaged: state{damaged} is not what was saved; "
                "remove that step, or train again"
            )
        return state

    @contextlib.contextmanager
    def _restore_errors(self, step: int) -> Iterator[None]:
        """Context manager that turns a failed restore into one line that names the checkpoint."""
        reason = ""
        with without_late_errors:
            try:
                yield
            except Exception as error:  # orbax raises a bare Exception on failed reads
                if is_lost_peer(error):
                    raise  # the checkpoint is intact
                reason = str(error).strip().splitlines()[0][:200] if str(error) else repr(error)
                clear_frames(error)  # they hold reads that will still fail
            if reason:
                gc.collect()
                without_late_errors.linger()
        if reason:
            raise InputError(
                f"{self._folder}/{step} cannot be restored: it is damaged or was written by "
                f"another model or version ({reason})"
            )

    def _saved_metadata(self, step: int) -> dict[str, Any]:
        if step not in self._metadata:
            self._metadata[step] = read_metadata(self._manager, self._folder, step)
        return self._metadata[step]

    def _move(self, iterator: "grain.DatasetIterator", step: int, saved: Any) -> None:
        """Moves `iterator` to its position at `step`.

        Grain writes one file per process and expects the same number when reading. All files hold
        the same number of batches, whatever the number of processes, so any one of them suffices.
        """
        files = sorted(epath.Path(self._folder / str(step) / "data").glob("process_*-of-*.json"))
        position = json.loads(files[0].read_text()) if files else None
        shape = jax.tree.map(type, iterator.get_state())
        if jax.tree.map(type, position) != shape or (saved is not None and position != saved):
            raise ValueError("the position in the training images is not what was saved")
        iterator.set_state(position)

    def wait(self) -> None:
        """Blocks until everything is on disk; raises the errors of a background save.

        Raises:
          InputError: the disk is full or rejects the write.
        """
        waiting_for("the checkpoint", PATIENCE)
        with self._disk_errors():
            self._manager.wait_until_finished()

    def reached_preemption(self, step: int) -> bool:
        """Returns whether a machine of the job is about to be preempted.

        Non-blocking and collective: call after every step with increasing `step`. All processes get
        the same answer. Always False for a single process.
        """
        return self._manager.reached_preemption(step)

    def close(self) -> None:
        """Waits until everything is on disk and stops the background threads."""
        try:
            self.wait()
            self._manager.close()
        finally:
            self._quiet.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
            return
        without_late_errors.linger()
        self._quiet.close()  # without a wait: what is being written stays behind

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # orbax and TensorStore raise many types of errors
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


def _check_room(folder: Path) -> None:
    """Creates and removes as many folders and files as a checkpoint has at least.

    Where orbax cannot create one of its folders, on a full disk or one without inodes, it waits
    minutes for it.

    Raises:
      OSError: one of them cannot be created.
    """
    with tempfile.TemporaryDirectory(prefix=".room-", dir=folder) as room:
        for name in ("state", "data", "metrics", "d"):
            Path(room, name).mkdir()
            for number in range(4):
                Path(room, name, f"{number}").touch()


def _check_steps(folder: Any) -> None:
    """Refuses a step that is no folder, which orbax would pass over for an earlier one."""
    steps = folder.iterdir() if isinstance(folder, Path) and folder.is_dir() else ()
    wrong = [path.name for path in steps if path.name.isdecimal() and not path.is_dir()]
    if wrong:
        raise ValueError(f"{wrong[0]} is not a folder")


def _leaves(tree: Any) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_leaves_with_path(tree)

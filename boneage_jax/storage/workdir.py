"""The folder of one run: claimed by one config, read back by evaluation and prediction."""

import dataclasses
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from boneage_jax.config import check_config, differences, load_config, save_config
from boneage_jax.data.info import Facts
from boneage_jax.errors import InputError
from boneage_jax.state import TrainState
from boneage_jax.storage.bucket import checkpoint_folder, open_workdir
from boneage_jax.storage.checkpoints import Checkpoints
from boneage_jax.training.run import Run, build_run, fresh_state


def claim_workdir(
    folder: Path,
    config: ConfigDict,
    facts: Facts,
    background: Path | None = None,
    *,
    writes: bool = True,
) -> None:
    """Makes `folder` the workdir of this config, or checks that it already is.

    A folder without a checkpoint, left by a start that failed, may be claimed anew.

    Args:
      folder: created where missing.
      config: a checked config, written to config.json.
      facts: of the training data, written to facts.json.
      background: the `background/` of data without background, copied to the workdir.
      writes: whether this process writes (one of a job does; all check).

    Raises:
      InputError: the folder cannot be written, or holds a run of another config or other data.
    """
    begun = any(_has_checkpoint(place) for place in (folder, *folder.glob("members/*")))
    if begun and (folder / "config.json").exists():
        changed = differences(load_config(folder / "config.json"), config)
        if changed:
            raise InputError(
                f"{folder} holds a run of another config ({'; '.join(changed[:3])}"
                f"{' ...' if len(changed) > 3 else ''}); choose another --workdir or remove it"
            )
    if begun and (folder / "facts.json").exists():
        old = load_facts(folder)
        if old != facts:
            raise InputError(
                f"the training data changed since the run in {folder} began ({old} then, {facts} "
                "now); choose another --workdir"
            )
    if not writes:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / "facts.json", json.dumps(dataclasses.asdict(facts)) + "\n")
        if not begun or not (folder / "config.json").exists():
            save_config(folder / "config.json", config)
            _replace_folder(folder / "background", background)
    except (OSError, shutil.Error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(
            f"--workdir={folder} cannot be written ({reason}); choose a writable folder"
        ) from error


def load_facts(folder: Path) -> Facts:
    """The facts.json of a workdir.

    Raises:
      InputError: it is missing or damaged.
    """
    path = folder / "facts.json"
    try:
        return Facts(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} is missing or damaged ({error}); train again") from error


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained network read back from its workdir."""

    run: Run
    state: TrainState
    step: int
    folder: Path


def load_trained(
    folder: str | os.PathLike[str],
    *,
    task: str = "",
    eval_batch_size: int = 0,
    devices: Sequence[jax.Device] | None = None,
) -> Trained:
    """Reads the network that a run selected.

    Args:
      folder: the workdir of a training.
      task: refuse a run of any other task, where given.
      eval_batch_size: images per evaluation step instead of the config's, where not 0; the
        training batch then need not divide over the devices.
      devices: to run on, all by default.

    Raises:
      InputError: no run there, another task, no checkpoint, or a damaged one.
    """
    folder = open_workdir(folder)
    stored = load_config(folder / "config.json")
    config = check_config(stored)
    if task and config.task != task:
        raise InputError(f"{folder} holds a run of task {config.task!r}, not {task!r}")
    if eval_batch_size:
        with config.unlocked():
            config.eval_batch_size = eval_batch_size
            # Nothing is trained on it, so another number of devices is no obstacle.
            config.batch_size = eval_batch_size * config.accumulate
            # A budget would be counted anew, by tracing the train step.
            config.steps, config.budget_flops = 1, 0.0
    facts = load_facts(folder)
    if (folder / "members").is_dir():
        raise InputError(f"{folder} holds an ensemble; name one of it: {folder}/members/0")
    if not checkpoint_folder(folder).is_dir():
        raise InputError(f"{folder} holds no checkpoints; train first or name its workdir")
    run = build_run(config, facts, devices)
    checkpoints = Checkpoints(folder, run.task.metric, read_only=True)
    step = checkpoints.step_to_use(config.select)
    like = run.parallel.state_shapes(lambda: fresh_state(config, facts, run.task, run.optimizer))
    state = checkpoints.restore(step, like)
    checkpoints.close()
    return Trained(run, state, step, folder)


def _has_checkpoint(folder: Path) -> bool:
    checkpoints = checkpoint_folder(folder)
    return checkpoints.exists() and any(path.name.isdigit() for path in checkpoints.iterdir())


def _replace_folder(target: Path, source: Path | None) -> None:
    """Makes `target` a copy of `source`, or nothing: what an earlier start left does not stay."""
    part = target.with_name(target.name + ".part")
    for old in (target, part):
        if old.is_dir():
            shutil.rmtree(old)
        else:
            old.unlink(missing_ok=True)
    if source is not None:
        shutil.copytree(source, part)
        part.replace(target)


def _write(path: Path, text: str) -> None:
    """Writes a file in one piece: a kill leaves the old one or the new one."""
    part = path.with_suffix(".part")
    part.write_text(text)
    part.replace(path)

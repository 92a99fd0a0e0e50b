"""The folder of one run, which belongs to one config and one training set."""

import dataclasses
import json
import shutil
from pathlib import Path

from ml_collections import ConfigDict

from boneage_jax.config import differences, load_config, save_config
from boneage_jax.data.info import DataInfo
from boneage_jax.errors import InputError
from boneage_jax.storage.bucket import checkpoint_folder
from boneage_jax.storage.layout import BACKGROUND, CONFIG, INFO, MEMBERS
from boneage_jax.storage.safe_write import write_text


def claim_workdir(
    folder: Path,
    config: ConfigDict,
    info: DataInfo,
    background: Path | None = None,
    *,
    writes: bool = True,
) -> None:
    """Makes `folder` the workdir of this config, or checks that it already is.

    A folder without a checkpoint, left by a failed start, may be claimed again.

    Args:
      folder: created if missing.
      config: a checked config, written to config.json.
      info: info of the training data, written to facts.json.
      background: the `background/` of data without background, copied to the workdir.
      writes: whether this process writes (one process of a job does; all check).

    Raises:
      InputError: the folder cannot be written to, or holds a run of another config or other data.
    """
    begun = any(_has_checkpoint(place) for place in (folder, *folder.glob(f"{MEMBERS}/*")))
    if begun and (folder / CONFIG).exists():
        changed = differences(load_config(folder / CONFIG), config)
        if changed:
            raise InputError(
                f"{folder} holds a run of another config ({'; '.join(changed[:3])}"
                f"{' ...' if len(changed) > 3 else ''}); choose another --workdir or remove it"
            )
    if begun and (folder / INFO).exists():
        old = load_info(folder)
        if old != info:
            raise InputError(
                f"the training data changed since the run in {folder} began ({old} then, {info} "
                "now); choose another --workdir"
            )
    if not writes:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / INFO, json.dumps(dataclasses.asdict(info)) + "\n")
        if not begun or not (folder / CONFIG).exists():
            save_config(folder / CONFIG, config)
            _replace_folder(folder / BACKGROUND, background)
    except (OSError, shutil.Error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(
            f"--workdir={folder} cannot be written ({reason}); choose a writable folder"
        ) from error


def load_info(folder: Path) -> DataInfo:
    """Reads the facts.json of a workdir.

    Raises:
      InputError: the file is missing or damaged.
    """
    path = folder / INFO
    try:
        return DataInfo(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} is missing or damaged ({error}); train again") from error


def _has_checkpoint(folder: Path) -> bool:
    checkpoints = checkpoint_folder(folder)
    return checkpoints.exists() and any(path.name.isdigit() for path in checkpoints.iterdir())


def _replace_folder(target: Path, source: Path | None) -> None:
    """Makes `target` a copy of `source`, or removes it if there is no source."""
    part = target.with_name(target.name + ".part")
    for old in (target, part):
        if old.is_dir():
            shutil.rmtree(old)
        else:
            old.unlink(missing_ok=True)
    if source is not None:
        shutil.copytree(source, part)
        part.replace(target)

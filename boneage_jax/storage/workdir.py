"""The folder of one run, which belongs to one config and one training set."""

import dataclasses
import json
import shutil
from pathlib import Path

from ml_collections import ConfigDict

from boneage_jax.config import check_config, load_config, save_config
from boneage_jax.data.info import DataInfo
from boneage_jax.errors import InputError
from boneage_jax.extensions import DATASETS
from boneage_jax.json_file import read_json
from boneage_jax.storage.bucket import checkpoint_folder
from boneage_jax.storage.config_changes import READING_KEYS, differences
from boneage_jax.storage.layout import BACKGROUND, CONFIG, INFO, MEMBERS, REPORT
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

    A folder without a checkpoint, left by a failed start, may be claimed again. A report that was
    made by other `READING_KEYS` is removed, so that the run is evaluated again.

    Args:
      folder: created if missing.
      config: a checked config, written to config.json.
      info: info of the training data, written to facts.json.
      background: the `background/` of data without background, copied to the workdir.
      writes: whether this process writes (one process of a job does; all check).

    Raises:
      InputError: see `check_config_of`; the folder cannot be written to, or holds a run on other
        data.
    """
    begun = check_config_of(folder, config)
    if begun:
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
        if begun and differences(load_config(folder / CONFIG), config):
            (folder / REPORT).unlink(missing_ok=True)
            save_config(folder / CONFIG, config)
        if not begun:
            save_config(folder / CONFIG, config)
            _replace_folder(folder / BACKGROUND, background)
    except (OSError, shutil.Error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(
            f"--workdir={folder} cannot be written ({reason}); choose a writable folder"
        ) from error


def check_config_of(folder: Path, config: ConfigDict) -> bool:
    """Checks that the run in `folder`, if one has begun there, learns by this config.

    Returns:
      Whether it has begun, that is, has a checkpoint.

    Raises:
      InputError: the run has another config (`READING_KEYS` may differ), or its config.json or
        facts.json is missing or damaged.
    """
    if not any(_has_checkpoint(place) for place in (folder, *folder.glob(f"{MEMBERS}/*"))):
        return False
    for name in (CONFIG, INFO):
        if not (folder / name).exists():
            raise InputError(
                f"{folder} holds checkpoints without {name}; put that file back, or choose another "
                "--workdir"
            )
    load_info(folder)  # compared with the data once they are open
    changed = _learning(differences(load_config(folder / CONFIG), config))
    if changed:
        raise InputError(
            f"{folder} holds a run of another config ({'; '.join(changed[:3])}"
            f"{' ...' if len(changed) > 3 else ''}); choose another --workdir or remove it"
        )
    return True


def _learning(changed: list[str]) -> list[str]:
    """Returns those of `differences` that change more than how a trained network reads."""
    return [line for line in changed if line.partition(":")[0] not in READING_KEYS]


def read_run(folder: Path) -> tuple[ConfigDict, DataInfo]:
    """Reads the config and the data info of a run.

    Raises:
      InputError: one of the files is missing or damaged, or they disagree on the image size.
    """
    config, info = read_config(folder), load_info(folder)
    size = config.data.config.partition("-")[0]
    # Names of shipped configs begin with the size; those of registered data sets may not.
    if config.data.name not in DATASETS and size.isdecimal() and int(size) != info.image_size:
        raise InputError(
            f"{folder / INFO} has image_size={info.image_size}, {CONFIG} beside it "
            f"data.config={config.data.config}: one of them is not of this run; put it back"
        )
    return config, info


def read_config(folder: Path) -> ConfigDict:
    """Reads and checks the config of a run.

    Raises:
      InputError: the file is missing, damaged, or holds a wrong value.
    """
    config = load_config(folder / CONFIG)
    try:
        return check_config(config)
    except InputError as error:
        raise InputError(f"{folder / CONFIG}: {error}") from error


def load_info(folder: Path) -> DataInfo:
    """Reads the facts.json of a workdir.

    Raises:
      InputError: the file is missing or damaged.
    """
    path = folder / INFO
    try:
        return DataInfo(**read_json(path))
    except FileNotFoundError:
        raise InputError(f"{path} is missing; put it back, or train again") from None
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}); put it back, or train again") from error


def _has_checkpoint(folder: Path) -> bool:
    checkpoints = checkpoint_folder(folder)
    if not checkpoints.exists():
        return False
    if not checkpoints.is_dir():
        raise InputError(f"{checkpoints} must be a folder; choose another --workdir")
    return any(path.name.isdecimal() for path in checkpoints.iterdir())


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

"""Names of the files and folders of a workdir, and what makes a folder one."""

import shutil
from pathlib import Path

CONFIG = "config.json"
INFO = "facts.json"  # `boneage_jax.data.info.DataInfo`; keeps the name that older workdirs use
CHECKPOINTS = "checkpoints"
MEMBERS = "members"
PRETRAIN = "pretrain"
BACKGROUND = "background"
CALIBRATION = "calibration.npz"
REPORT = "report.json"


def is_workdir(folder: Path) -> bool:
    """Returns whether `folder` holds a run: its config, and checkpoints or members."""
    kept = (folder / CHECKPOINTS, folder / MEMBERS)
    return (folder / CONFIG).is_file() and any(path.is_dir() for path in kept)


def member_folder(folder: Path, number: int) -> Path:
    """Returns the workdir of member `number` (from 0) of the ensemble in `folder`."""
    return folder / MEMBERS / str(number)


def copy_network(workdir: Path, target: Path) -> None:
    """Copies the files that `boneage_jax.load_segmenter` reads: config, info, checkpoints.

    Raises:
      OSError, shutil.Error: a file cannot be read or written.
    """
    target.mkdir(parents=True, exist_ok=True)
    for name in (CONFIG, INFO):
        shutil.copy(workdir / name, target / name)
    shutil.copytree(workdir / CHECKPOINTS, target / CHECKPOINTS, dirs_exist_ok=True)

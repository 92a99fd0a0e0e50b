"""Names of the files and folders of a workdir, and what makes a folder one."""

import os
import shutil
from pathlib import Path

from boneage_jax.errors import InputError

CONFIG = "config.json"
INFO = "facts.json"  # `boneage_jax.data.info.DataInfo`; keeps the name that older workdirs use
CHECKPOINTS = "checkpoints"
MEMBERS = "members"
PRETRAIN = "pretrain"
BACKGROUND = "background"
CALIBRATION = "calibration.npz"
REPORT = "report.json"
# Of a published network, see `boneage_jax.storage.published`.
WEIGHTS = "network.safetensors"
SUMS = "SHA256SUMS"
CARD = "README.md"
LICENSE = "LICENSE"
SITE = "site_calibration.json"  # of `calibrate` only
LOCK = ".lock"  # held by the process that trains here
_LONGEST = 255, 3800  # bytes of a name and of a path; Linux takes 4096, files inside need the rest


def checked_path(path: str | os.PathLike[str], what: str = "workdir") -> Path:
    """Returns a path that can be created, with `~` expanded.

    Args:
      path: a path as the user gave it.
      what: what it is, for the message.

    Raises:
      InputError: not a text or `Path`, empty, with a NUL character, or longer than file systems
        take.
    """
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise InputError(f"{what}={path!r} must be a text or a pathlib.Path, e.g. 'runs/mine'")
    text = os.fspath(path)
    if not text or "\0" in text:
        raise InputError(f"{what}={text!r} must not be empty; e.g. runs/mine")
    try:
        os.fsencode(text)
    except UnicodeEncodeError:  # half of a surrogate pair
        raise InputError(f"{what}={text!r} holds a character that no file name can have") from None
    try:
        found = Path(text).expanduser()
    except RuntimeError as error:  # ~NAME of an unknown user
        raise InputError(f"{what}={text}: {error}; give the whole path") from error
    sizes = [len(part.encode(errors="replace")) for part in found.parts]
    if max(sizes, default=0) > _LONGEST[0] or sum(sizes) + len(sizes) > _LONGEST[1]:
        raise InputError(f"{what}={text[:60]}...: the name is too long for a file system")
    return found


def is_workdir(folder: Path) -> bool:
    """Returns whether `folder` holds a network: a config with checkpoints, members or weights."""
    kept = (folder / CHECKPOINTS, folder / MEMBERS)
    trained = (folder / CONFIG).is_file() and any(path.is_dir() for path in kept)
    return trained or is_published(folder)


def is_published(folder: Path) -> bool:
    """Returns whether `folder` holds a published network, complete or not."""
    return (folder / WEIGHTS).is_file() or (folder / SUMS).is_file()


def member_folder(folder: Path, number: int) -> Path:
    """Returns the workdir of member `number` (from 0) of the ensemble in `folder`."""
    return folder / MEMBERS / str(number)


def copy_network(workdir: Path, target: Path) -> None:
    """Copies the files that `boneage_jax.load_segmenter` reads: config, info, checkpoints.

    Of a published network the whole folder, without the metadata of its files.

    Raises:
      OSError, shutil.Error: a file cannot be read or written.
    """
    if is_published(workdir):
        shutil.copytree(workdir, target, dirs_exist_ok=True, copy_function=shutil.copyfile)
        return
    target.mkdir(parents=True, exist_ok=True)
    for name in (CONFIG, INFO):
        shutil.copy(workdir / name, target / name)
    shutil.copytree(workdir / CHECKPOINTS, target / CHECKPOINTS, dirs_exist_ok=True)

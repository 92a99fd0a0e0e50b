"""The folder of a published network: weights without an optimizer, checked by sha256 sums.

  network.safetensors       parameters and running statistics of one network or of several
  config.json, facts.json   as in a workdir, like calibration.npz, background/ and report.json
  README.md, LICENSE        model card and terms
  SHA256SUMS                of every file but README.md, which people edit; `sha256sum -c` reads it

Matrices and kernels are float16; vectors (biases, scales, running statistics), which are some
percent of the numbers, stay float32. A tensor is called MEMBER/COLLECTION/LAYER/.../NAME. Nothing
in the folder is executed.
"""

import contextlib
import hashlib
import json
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from boneage_jax.errors import InputError
from boneage_jax.json_file import read_bytes
from boneage_jax.storage.layout import (
    BACKGROUND,
    CALIBRATION,
    CARD,
    CONFIG,
    INFO,
    REPORT,
    SUMS,
    WEIGHTS,
)
from boneage_jax.storage.safe_write import write_text

_KEY, _FORMAT = "boneage_jax", 1  # of the metadata, which is JSON text
_FLOAT16_MAX = float(np.finfo(np.float16).max)
_MOST_MEMBERS = 1000
_LARGEST_SUMS = 2**20  # bytes
_LINE = re.compile(r"([0-9a-f]{64})  ?\*?(.+)")
_AGAIN = "fetch the folder again"


class Saved(NamedTuple):
    """One network of a file.

    Attributes:
      variables: arrays by COLLECTION/LAYER/.../NAME, float32 once read.
      flops: FLOPs of its training.
      step: optimizer updates done.
    """

    variables: dict[str, np.ndarray]
    flops: int
    step: int


def save_networks(path: Path, networks: Sequence[Saved]) -> None:
    """Writes a file of one network or of several, see the docstring of this module."""
    from safetensors.numpy import save

    tensors = {
        f"{number}/{name}": np.ascontiguousarray(rounded(values))
        for number, network in enumerate(networks)
        for name, values in network.variables.items()
    }
    trained = [{"flops": network.flops, "step": network.step} for network in networks]
    # One key, as several come in random order. `save_file` would keep the file from other users.
    notes = {_KEY: json.dumps({"format": _FORMAT, "members": trained})}
    path.write_bytes(save(tensors, notes))


def rounded(values: np.ndarray) -> np.ndarray:
    """Returns an array as it is published: float16, or float32 if it is a vector or too large."""
    values = np.asarray(values, np.float32)
    large = values.size and float(np.abs(values).max()) > _FLOAT16_MAX
    return values if values.ndim < 2 or large else values.astype(np.float16)


def count_networks(folder: Path) -> int:
    """Returns the number of networks in a folder, at least 1.

    Raises:
      InputError: see `read_network`.
    """
    path = folder / WEIGHTS
    with _opened(path) as file:
        return len(_members(file, path))


def read_network(folder: Path, number: int = 0) -> Saved:
    """Reads network `number` (from 0) of a folder whose sums were checked.

    Raises:
      InputError: the file is damaged, of a newer version, or holds numbers that are not finite.
    """
    path = folder / WEIGHTS
    with _opened(path) as file:
        member = _members(file, path)[number]
        prefix = f"{number}/"
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
        found = {name.removeprefix(prefix): file.get_tensor(name) for name in names}
    for name, values in found.items():
        if values.dtype not in (np.float16, np.float32) or not np.isfinite(values).all():
            raise InputError(f"{path}: {name} does not hold finite numbers; {_AGAIN}")
    variables = {name: values.astype(np.float32) for name, values in found.items()}
    return Saved(variables, member["flops"], member["step"])


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged ({error}); {_AGAIN}") from error


def _members(file: Any, path: Path) -> list[dict[str, int]]:
    """Returns `flops` and `step` of each network of an open file."""
    try:
        notes = json.loads((file.metadata() or {})[_KEY])
        version, members = notes["format"], notes["members"]
        members = [{key: int(each[key]) for key in ("flops", "step")} for each in members]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{path} is no network of boneage_jax, its metadata say ({error!r:.80}); {_AGAIN}"
        ) from error
    if version != _FORMAT:
        raise InputError(f"{path} is of format {version!r:.20}, not {_FORMAT}: update boneage_jax")
    whole = all(value >= 0 for each in members for value in each.values())
    if not (1 <= len(members) <= _MOST_MEMBERS and whole):
        raise InputError(f"{path}: its metadata names {len(members)} networks; {_AGAIN}")
    return members


def write_sums(folder: Path) -> None:
    """Writes the sums of all files below `folder` but the card."""
    files = sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )
    lines = [f"{_sha256(folder / name)}  {name}\n" for name in files if name not in (SUMS, CARD)]
    write_text(folder / SUMS, "".join(lines))


def check_sums(folder: Path) -> None:
    """Checks that a published network is complete and unchanged.

    Raises:
      InputError: a file is missing, differs from its sum, or is read but has no sum.
    """
    sums = read_sums(folder)
    for name, expected in sums.items():
        path = folder / name
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                raise InputError(f"{path} is not a file; {_AGAIN}")
            found = _sha256(path)
        except FileNotFoundError:
            raise InputError(f"{path} is missing, {SUMS} lists it; {_AGAIN}") from None
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from error
        if found != expected:
            raise InputError(
                f"{path} is not what was published: its sha256 is {found[:12]}..., {SUMS} has "
                f"{expected[:12]}...; {_AGAIN}"
            )
    needed = {CONFIG, INFO, WEIGHTS}
    optional = [folder / name for name in (CALIBRATION, REPORT)]
    optional += (folder / BACKGROUND).rglob("*")
    read = needed | {p.relative_to(folder).as_posix() for p in optional if p.is_file()}
    if unlisted := sorted(read - sums.keys()):
        raise InputError(f"{folder / SUMS} does not list {unlisted[0]}; {_AGAIN}")


def read_sums(folder: Path) -> dict[str, str]:
    """Reads the sha256 sum of each file of a published network, by its path below `folder`.

    Raises:
      InputError: the file is missing or damaged, or names a file outside the folder.
    """
    path = folder / SUMS
    try:
        text = read_bytes(path, _LARGEST_SUMS).decode()
    except FileNotFoundError:
        raise InputError(f"{path} is missing: the weights cannot be checked; {_AGAIN}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is damaged ({error}); {_AGAIN}") from error
    sums: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        match = _LINE.fullmatch(line)
        name = PurePosixPath(match[2]) if match else PurePosixPath()
        if match is None or name.is_absolute() or ".." in name.parts or "\\" in match[2]:
            raise InputError(f"{path} line {number} is no sha256 sum of a file in the folder")
        sums[name.as_posix()] = match[1]
    return sums


def fingerprint(folder: Path) -> str:
    """Returns the sha256 of the sums of a published network, "" of any other folder."""
    return _sha256(folder / SUMS) if (folder / SUMS).is_file() else ""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

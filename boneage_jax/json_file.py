"""Reads files of a run, most of them JSON, that may be damaged or hostile."""

import json
import math
import stat
from pathlib import Path
from typing import Any

from boneage_jax.errors import InputError

_LARGEST = 256 * 2**20  # bytes; the largest report of ours has some MB


def read_json(path: Path) -> Any:
    """Reads a JSON file; NaN and infinities, which JSON does not have, are refused.

    Raises:
      FileNotFoundError: there is no such file.
      InputError: it cannot be read, or is not JSON.
    """
    try:
        return json.loads(read_bytes(path, _LARGEST).decode("utf-8"), parse_constant=_refuse)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:  # includes text that is not UTF-8
        raise InputError(f"{path} is damaged, it is not JSON: {error}") from error


def read_bytes(path: Path, largest: float = math.inf) -> bytes:
    """Reads a whole file; a pipe or a device, whose reading may never end, is refused.

    Args:
      path: the file.
      largest: most bytes that it may have.

    Raises:
      FileNotFoundError: there is no such file.
      InputError: it cannot be read, or is too large.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise InputError(f"{path} is not a file")
        if found.st_size > largest:
            raise InputError(f"{path} has {found.st_size:,} bytes; at most {largest:,} are read")
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def _refuse(constant: str) -> float:
    raise ValueError(f"it holds {constant}")

"""Reads JSON files that may be damaged or hostile."""

import json
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
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # reading a pipe or a device may never end
            raise InputError(f"{path} is not a file")
        if found.st_size > _LARGEST:
            raise InputError(f"{path} has {found.st_size:,} bytes; at most {_LARGEST:,} are read")
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except FileNotFoundError:
        raise
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # includes text that is not UTF-8
        raise InputError(f"{path} is damaged, it is not JSON: {error}") from error


def _refuse(constant: str) -> float:
    raise ValueError(f"it holds {constant}")

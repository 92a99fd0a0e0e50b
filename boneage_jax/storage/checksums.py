"""Checksums of a state, which detect checkpoints that do not restore what was saved.

The files of a checkpoint hold compressed chunks without a checksum of their content: of sixty
damaged checkpoints, one was restored silently with other parameters
(benchmarks/robustness/fuzz.py).
"""

import re
import zlib
from typing import Any

import jax
import numpy as np

_FIELD = re.compile(r"^\['(\w+)'\]")


def checksums(tree: Any) -> dict[str, int]:
    """Returns the CRC-32 of every array by path, e.g. `.params['top_conv']['kernel']`.

    Waits for the arrays and copies them to the host if they are not there already.

    Args:
      tree: arrays; with several processes they must be replicated, as each reads its own copy.
    """
    return {jax.tree_util.keystr(path): _crc(leaf) for path, leaf in _leaves(tree)}


def first_damaged(tree: Any, saved: dict[str, Any], *, part: bool = False) -> str:
    """Returns the path of the first array that differs from what was saved, "" if none does.

    Args:
      tree: the restored arrays.
      saved: result of `checksums` for the complete saved state.
      part: `tree` is a dict with some fields of the saved state.
    """
    now = checksums(tree)
    if part:  # fields are keys in a dict but attributes of a state
        now = {as_field(path): value for path, value in now.items()}
    elif now.keys() != saved.keys():
        return sorted(now.keys() ^ saved.keys())[0]
    return next((path for path, value in now.items() if saved.get(path) != value), "")


def as_field(path: str) -> str:
    """Converts a path in a dict to that in a state: ['params']['a'] becomes .params['a']."""
    return _FIELD.sub(r".\1", path, count=1)


def _leaves(tree: Any) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_leaves_with_path(tree)


def _crc(leaf: Any) -> int:
    if isinstance(leaf, jax.Array):
        leaf = leaf.addressable_data(0)
    # ml_dtypes' bfloat16 does not support the buffer protocol: read the bytes.
    return zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)

"""Checksums of a state, so that a checkpoint restores what was saved or says that it does not.

The files of a checkpoint hold compressed pieces without a checksum of their content: of sixty
damaged ones, one was restored without a word, as other parameters (benchmarks/robustness/fuzz.py).
"""

import re
import zlib
from typing import Any

import jax
import numpy as np

_FIELD = re.compile(r"^\['(\w+)'\]")


def checksums(tree: Any) -> dict[str, int]:
    """CRC-32 of every array by its path, e.g. `.params['top_conv']['kernel']`.

    Waits for the arrays and copies them to the host, where they are not there already.

    Args:
      tree: arrays, on several processes replicated ones: each reads its own copy.
    """
    return {jax.tree_util.keystr(path): _crc(leaf) for path, leaf in _leaves(tree)}


def first_damaged(tree: Any, saved: dict[str, Any], *, part: bool = False) -> str:
    """Returns the path of the first array that differs from what was saved, "" for none.

    Args:
      tree: what was restored.
      saved: what `checksums` returned for the whole that was saved.
      part: `tree` is a dict with some fields of the state that was saved.
    """
    now = checksums(tree)
    if part:  # fields are keys here, attributes of a state
        now = {as_field(path): value for path, value in now.items()}
    elif now.keys() != saved.keys():
        return sorted(now.keys() ^ saved.keys())[0]
    return next((path for path, value in now.items() if saved.get(path) != value), "")


def as_field(path: str) -> str:
    """Returns the path of a dict's array as that of a state: ['params']['a'] as .params['a']."""
    return _FIELD.sub(r".\1", path, count=1)


def _leaves(tree: Any) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_leaves_with_path(tree)


def _crc(leaf: Any) -> int:
    if isinstance(leaf, jax.Array):
        leaf = leaf.addressable_data(0)
    # ml_dtypes' bfloat16 has no buffer of its own: read the bytes.
    return zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)

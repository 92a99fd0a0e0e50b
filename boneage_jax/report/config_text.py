"""A config as text: its keys with their values, meanings and ranges."""

import inspect
import re
from collections.abc import Collection

from ml_collections import ConfigDict

from boneage_jax.config import base_config, flat_keys
from boneage_jax.ranges import RANGES


def config_lines(config: ConfigDict, changed: Collection[str] = ()) -> list[str]:
    """Returns a config as text: one line per key, with its meaning.

    Args:
      config: any config.
      changed: keys that were changed on the command line, marked by `>`; keys that differ from
        `base_config` are marked by `*`.

    Returns:
      Lines such as `* log_every = 5  # steps between lines of metrics.jsonl, in [1, 10000000]
      (default 10)`.
    """
    meanings, defaults = _meanings(), dict(flat_keys(base_config()))
    lines = ["# > changed on the command line, * changed by the recipe"]
    for key, value in flat_keys(config):
        differs = key in defaults and defaults[key] != value
        mark = ">" if key in changed else "*" if differs or key not in defaults else " "
        within = f", {RANGES[key]}" if key in RANGES else ""
        notes = [meanings.get(key, "") + within, f"(default {defaults[key]!r})" if differs else ""]
        note = " ".join(note for note in notes if note)
        lines.append(f"{mark} {f'{key} = {value!r}':<46}{f'  # {note}' if note else ''}".rstrip())
    return lines


def _meanings() -> dict[str, str]:
    """Returns the comment beside each key in the source of `base_config`, by key."""
    line = re.compile(r"\s+config\.([\w.]+) = .*?  # (.+)")
    found = (line.fullmatch(text) for text in inspect.getsource(base_config).splitlines())
    return {match[1]: match[2] for match in found if match}

"""The folder for files that can be made again, by the XDG Base Directory Specification."""

import os
from pathlib import Path


def cache_folder() -> Path | None:
    """Returns XDG_CACHE_HOME/boneage_jax or ~/.cache/boneage_jax; it need not exist.

    Returns:
      None for a user without a home, e.g. any number given to `docker run --user`. A folder that
      other users can write to, as /tmp, is no place for programs.
    """
    chosen = Path(os.environ.get("XDG_CACHE_HOME") or ".")
    if chosen.is_absolute():  # others must be ignored
        return chosen / "boneage_jax"
    try:
        home = Path.home()
    except RuntimeError:
        return None
    return home / ".cache" / "boneage_jax" if home.is_absolute() else None

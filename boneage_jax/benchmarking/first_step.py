"""Measures compile time and peak memory of a run up to its first step, in its own process.

usage: python -m boneage_jax.benchmarking.first_step SETTINGS.json

`measure_start` starts this process. Only a fresh process measures both correctly: a second
compilation in one process is cheaper than the first, and peak memory never decreases.
"""

import gc
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from boneage_jax.errors import InputError
from boneage_jax.extensions import load_extensions, loaded_files

_MORE_STEPS = 3  # after the first, for the memory of stepping alone


def measure_start(recipe: ConfigDict, image_size: int, folder: Path) -> dict[str, Any]:
    """Starts a process that builds a run and takes steps on a synthetic batch.

    Args:
      recipe: checked config.
      image_size: pixels per side.
      folder: holds the compilation cache; an empty folder makes a cold start.

    Returns:
      `seconds` from the start of the process to the end of the first step, made up of
      `import_seconds`, `compile_seconds` (includes building and tracing) and `step_seconds`;
      `cache_files`, the number of files in the cache afterwards; `process_bytes`, the peak of
      resident memory over the whole process, and `stepping_bytes`, that of further steps (both
      absent if the system does not report it); `device_bytes`, the peak on the first device (absent
      if not reported); `planned`, see `Prepared.memory`.

    Raises:
      InputError: the process failed; the message holds the last line of its standard error.
    """
    folder.mkdir(parents=True, exist_ok=True)
    given, found = folder / "settings.json", folder / "start.json"
    found.unlink(missing_ok=True)
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    environment["XDG_CACHE_HOME"] = str(folder / "cache")
    command = [sys.executable, "-m", "boneage_jax.benchmarking.first_step", str(given)]
    given.write_text(
        json.dumps(
            {
                "recipe": recipe.to_dict(),
                "image_size": image_size,
                "extensions": loaded_files(),
                "output": str(found),
                # The monotonic clock is shared by all processes, so the child can count from here.
                "began": time.monotonic(),
            }
        )
    )
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode or not found.exists():
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise InputError(f"the process that takes the first step failed: {lines[-1]}")
    values: dict[str, Any] = json.loads(found.read_text())
    values["cache_files"] = sum(path.is_file() for path in (folder / "cache").rglob("*"))
    return values


def main(path: Path) -> None:
    """Takes the steps and writes the measurements; runs in the child process."""
    settings = json.loads(path.read_text())
    for file in settings["extensions"]:
        load_extensions(file)
    import jax

    from boneage_jax.benchmarking.settings import synthetic_info
    from boneage_jax.benchmarking.steps import prepare_train
    from boneage_jax.config import check_config
    from boneage_jax.runtime.compile_cache import use_compile_cache
    from boneage_jax.runtime.cpu_memory import COLLECTIONS, hold_memory
    from boneage_jax.runtime.process_setup import dispatch_on_caller

    gc.set_threshold(*COLLECTIONS)  # this and what follows as commands do
    hold_memory()
    dispatch_on_caller()
    # Also starts the backend, which belongs neither to building nor to compiling.
    device = jax.local_devices()[0]
    imported = time.monotonic()
    use_compile_cache()
    recipe = check_config(ConfigDict(settings["recipe"]))
    step = prepare_train(recipe, synthetic_info(settings["image_size"]))
    compiled = time.monotonic()
    step.call()
    stepped = time.monotonic()
    began = settings["began"]
    found: dict[str, Any] = {
        "seconds": stepped - began,
        "import_seconds": imported - began,
        "compile_seconds": compiled - imported,
        "step_seconds": stepped - compiled,
        "planned": step.memory,
    }
    whole = _peak_resident()
    if _forget_peak():
        for _ in range(_MORE_STEPS):
            step.call()
        found["stepping_bytes"] = _peak_resident()
    if whole:
        found["process_bytes"] = max(whole, _peak_resident())
    stats = device.memory_stats() or {}
    if stats.get("peak_bytes_in_use"):
        found["device_bytes"] = stats["peak_bytes_in_use"]
    Path(settings["output"]).write_text(json.dumps(found))


def _peak_resident() -> int:
    """Returns the peak resident bytes of this process (VmHWM), 0 if the system lacks it."""
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) * 1024 if found else 0


def _forget_peak() -> bool:
    """Resets the peak to the current resident memory (proc(5), clear_refs); False if that fails."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main(Path(sys.argv[1]))

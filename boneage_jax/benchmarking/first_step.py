"""A process of its own that takes the first step of a run: compile time and peak memory.

usage: python -m boneage_jax.benchmarking.first_step SETTINGS.json

`measure_start` starts it. A fresh process is the only honest measure of both: a second compilation
in one process is cheaper than the first, and peak memory never falls again.
"""

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
      image_size: pixels.
      folder: for the compilation cache; cold where it is empty.

    Returns:
      `seconds` from the start of the process to the end of the first step; of these
      `import_seconds`, `compile_seconds` (building and tracing with it) and `step_seconds`;
      `cache_files`, how many the cache holds then; `process_bytes`, the peak of resident memory
      over all, and `stepping_bytes`, that of further steps (absent where the system does not tell);
      `device_bytes`, the peak on the first device (absent where it is not reported); `planned`, see
      `Prepared.memory`.

    Raises:
      InputError: the process failed; its last line is in the message.
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
                # A clock of the whole machine, so that the child can count from here.
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
    """The process."""
    settings = json.loads(path.read_text())
    for file in settings["extensions"]:
        load_extensions(file)
    import jax

    from boneage_jax.benchmarking.settings import synthetic_info
    from boneage_jax.benchmarking.steps import prepare_train
    from boneage_jax.config import check_config
    from boneage_jax.runtime.compile_cache import use_compile_cache
    from boneage_jax.runtime.cpu_memory import tidy_heap

    # Also starts the backend, which is no part of building or compiling.
    device = jax.local_devices()[0]
    imported = time.monotonic()
    use_compile_cache()
    tidy_heap()
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
    """Peak resident bytes of this process (VmHWM), 0 where the system does not tell."""
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) * 1024 if found else 0


def _forget_peak() -> bool:
    """Sets the peak back to what is resident now (proc(5), clear_refs); False where that fails."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main(Path(sys.argv[1]))

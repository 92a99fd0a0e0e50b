"""Contenders: processes that live on, warm up once, and then compute only when they are asked.

A contender is a Python file. It calls `serve(setup)` in a process of its own; the benchmark starts
it with `Contender` and asks for so many steps at a time, in turns with the others, so that one
alone computes at any time and what drifts meets all of them.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
_MARK = "answer: "
# Settings of glibc for a process with large arrays: huge pages, one arena, nothing given back. Ours
# sets the like by itself; PyTorch and Keras gain from it as well.
HUGE_PAGES = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:"
    f"glibc.malloc.trim_threshold={1 << 40}:glibc.malloc.arena_max=1"
)


class Settings(NamedTuple):
    """What all contenders do alike."""

    model: str  # b0 | b4 | lite0 | unet | unet_10
    size: int  # pixels
    batch: int
    dtype: str  # float32 | bfloat16
    mode: str  # train | inference


class Ready(NamedTuple):
    """What a contender hands over once it is set up."""

    step: Callable[[], object]  # one step; waits for its result
    facts: dict[str, Any]  # e.g. parameters, versions, device


def serve(setup: Callable[[Settings], Ready], warmup: int = 3) -> None:
    """The contender's side: sets up, warms up, then answers on the standard output.

    Each line of the standard input is a number of steps; the answer is their seconds.
    """
    # Libraries print to the standard output, so answers carry a mark and a stream of their own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    began = time.perf_counter()
    ready = setup(Settings(**json.loads(sys.argv[1])))
    ready.step()
    facts = {"first_step_seconds": time.perf_counter() - began} | ready.facts
    for _ in range(warmup):
        ready.step()
    print(_MARK + json.dumps(facts), file=answers, flush=True)
    for line in sys.stdin:
        began = time.perf_counter()
        for _ in range(int(line)):
            ready.step()
        seconds = time.perf_counter() - began
        print(_MARK + json.dumps(seconds), file=answers, flush=True)


class Contender:
    """The benchmark's side of a contender. It sets itself up until `wait` returns.

    Args:
      name: for tables.
      file: of this folder, or an absolute path; it calls `serve`.
      settings: shared by all.
      options: further arguments of the file.
      environment: changes to that of this process; None removes a variable.
    """

    def __init__(
        self,
        name: str,
        file: str,
        settings: Settings,
        options: Sequence[str] = (),
        environment: Mapping[str, str | None] | None = None,
    ):
        self.name = name
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        changes = {"PYTHONPATH": path, **(environment or {})}
        kept = {key: value for key, value in os.environ.items() if key not in changes}
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / file), json.dumps(settings._asdict()), *options],
            env=kept | {key: value for key, value in changes.items() if value is not None},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.facts: dict[str, Any] = {}

    def wait(self) -> None:
        """Waits until it is ready; then `facts` are known.

        Raises:
          RuntimeError: it ended instead. Close it then, too.
        """
        self.facts = self._answer()

    def time(self, steps: int) -> float:
        """Seconds that `steps` steps take."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        return float(self._answer())

    def peak_mib(self) -> float:
        """Peak resident memory of the process so far, setting up included, in MiB."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        return int(found[1]) / 1024 if found else 0.0

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(_MARK):
                return json.loads(line.removeprefix(_MARK))
        raise RuntimeError(f"{self.name} ended with status {self._process.wait()}; see above")


def synthetic_batch(settings: Settings) -> dict[str, np.ndarray]:
    """The batch that all contenders step on: images uint8 [B, S, S, 1] and labels."""
    rng = np.random.default_rng(0)
    shape = (settings.batch, settings.size, settings.size, 1)
    return {
        "image": rng.integers(0, 256, shape, np.uint8),
        "mask": rng.integers(0, 2, shape, np.uint8),
        "bone_age": rng.uniform(12, 216, settings.batch).astype(np.float32),
        "male": rng.integers(0, 2, settings.batch).astype(np.int32),
    }

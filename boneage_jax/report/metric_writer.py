"""Log of a run: WORKDIR/metrics.jsonl and TensorBoard events, written during training."""

import contextlib
import json
import math
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from boneage_jax.errors import InputError
from boneage_jax.json_file import read_bytes
from boneage_jax.storage.safe_write import write_text, writing

# tensorboardX imports PyTorch where that is installed, 4 s and 400 MB for nothing: records need
# none of it, and it does without where the import fails.
_torch = {} if "torch" in sys.modules else {"torch": None}
sys.modules.update(_torch)  # type: ignore[arg-type]
try:
    from tensorboardX import RecordWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.proto.summary_pb2 import Summary
finally:
    for _name in _torch:
        del sys.modules[_name]

_FILE = "metrics.jsonl"


class MetricWriter:
    """Appends rows to metrics.jsonl and tensorboard/ of a workdir; also a context manager.

    Nothing on disk changes before the first row is written, so all processes of a job may hold a
    writer while one writes.

    Attributes:
      last_row: the last row kept from before, or None.
    """

    def __init__(self, workdir: Path, resume_step: int | None) -> None:
        """Starts the log of a run or continues it.

        Args:
          workdir: must exist at the first write.
          resume_step: step of the checkpoint that the run resumes from; later rows, and a last line
            truncated by a kill, are dropped. None starts a run and drops all rows.

        Raises:
          InputError: metrics.jsonl is damaged before its last line.
        """
        self._workdir = workdir
        self._resume_step = -1 if resume_step is None else resume_step
        rows = read_metrics(workdir)
        self._kept = [row for row in rows if row["step"] <= self._resume_step]
        self.last_row: dict[str, Any] | None = self._kept[-1] if self._kept else None
        self._lines: IO[str] | None = None
        self._events: RecordWriter | None = None

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes one row and flushes it.

        Args:
          step: training steps done.
          values: numbers; NaN and infinities, which JSON does not have, become null.

        Raises:
          InputError: the disk is full or rejects the row.
        """
        if self._lines is None or self._events is None:
            self._lines, self._events = self._open()
        row = {"step": int(step)} | {name: _number(value) for name, value in values.items()}
        with writing(self._workdir / _FILE):
            self._lines.write(_line(row))
            self._lines.flush()
        points = [Summary.Value(tag=k, simple_value=float(v)) for k, v in values.items()]
        with writing(self._workdir / "tensorboard"):
            self._events.write(_event(int(step), summary=Summary(value=points)))
            self._events.flush()

    def rewind(self, step: int) -> None:
        """Removes the rows after `step`, like a restart from its checkpoint."""
        self.close()
        self._resume_step = step
        rows = read_metrics(self._workdir)
        self._kept = [row for row in rows if row["step"] <= step]

    def close(self) -> None:
        """Writes out what is buffered; closing twice has no effect."""
        if self._lines is not None and self._events is not None:
            # All rows are flushed; what is left was rejected by a full disk and already reported.
            for file in (self._lines, self._events):
                with contextlib.suppress(OSError):
                    file.close()
        self._lines = self._events = None

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _open(self) -> tuple[IO[str], RecordWriter]:
        path = self._workdir / _FILE
        with writing(path):
            write_text(path, "".join(_line(row) for row in self._kept))
        folder = self._workdir / "tensorboard"
        with writing(folder):
            folder.mkdir(exist_ok=True)
            # SummaryWriter would write in a thread, which dies silently on a full disk.
            name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"
            events = RecordWriter(str(folder / name))
            # Makes TensorBoard hide what an earlier, killed process wrote from this step on.
            start = self._resume_step + 1
            events.write(_event(start, file_version="brain.Event:2"))
            events.write(_event(start, session_log=SessionLog(status=SessionLog.START)))
            events.flush()
        with writing(path):
            return path.open("a", encoding="utf-8"), events


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Returns the rows of WORKDIR/metrics.jsonl in writing order; none if the file is missing.

    Leaves out a last line that was truncated by a kill.

    Raises:
      InputError: the file cannot be read; another line is not a JSON object with an integer
        `step` and finite numbers or null.
    """
    path = workdir / _FILE
    try:
        lines = read_bytes(path).splitlines()
    except FileNotFoundError:
        return []
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # includes a truncated UTF-8 character
            row = None
        if _is_row(row):
            rows.append(row)
        elif number < len(lines):
            raise InputError(
                f"{path}, line {number} is not a row of metrics ({line[:40]!r}); remove the line"
            )
    return rows


def _is_row(row: Any) -> bool:
    numbers = isinstance(row, dict) and all(
        value is None or (isinstance(value, int | float) and math.isfinite(value))
        for value in row.values()
    )
    return numbers and type(row.get("step")) is int and row["step"] >= 0


def column(rows: Sequence[Mapping[str, Any]], name: str, workdir: Path) -> list[float]:
    """Returns one number per row of metrics.jsonl.

    Raises:
      InputError: a row lacks it, or holds null.
    """
    for row in rows:
        if row.get(name) is None:
            raise InputError(
                f"{workdir / _FILE} is damaged: the row of step {row['step']} has no {name!r}; "
                "put the file back, or remove that row"
            )
    return [row[name] for row in rows]


def _event(step: int, **content: Any) -> bytes:
    return Event(step=step, wall_time=time.time(), **content).SerializeToString()


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


def _number(value: Any) -> int | float | None:
    value = value.item() if hasattr(value, "item") else value
    return value if math.isfinite(value) else None

"""The log of a run: WORKDIR/metrics.jsonl and TensorBoard events, written as it goes."""

import contextlib
import json
import math
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from tensorboardX import RecordWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from boneage_jax.errors import InputError
from boneage_jax.storage.safe_write import write_text, writing

_FILE = "metrics.jsonl"


class MetricWriter:
    """Appends rows to metrics.jsonl and tensorboard/ of a workdir; also a context manager.

    Nothing on disk changes before the first row is written, so of a job of many processes all
    may hold a writer and one writes.

    Attributes:
      last_row: the last row kept from before, or None.
    """

    def __init__(self, workdir: Path, resume_step: int | None) -> None:
        """Begins the log of a run, or goes on with it.

        Args:
          workdir: exists at the first write.
          resume_step: the step of the checkpoint that the run goes on from: later rows, and a
            last line torn by a kill, are forgotten. None: the run begins, all rows are forgotten.

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
          step: optimizer updates done.
          values: finite numbers; NaN and infinities, which JSON has not, become null.

        Raises:
          InputError: the disk is full or refuses the row.
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
        """Removes the rows after `step`, as a restart from its checkpoint does."""
        self.close()
        self._resume_step = step
        rows = read_metrics(self._workdir)
        self._kept = [row for row in rows if row["step"] <= step]

    def close(self) -> None:
        """Writes out what is buffered; closing twice does nothing."""
        if self._lines is not None and self._events is not None:
            # All is flushed; what is left is what a full disk has refused and reported.
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
            # SummaryWriter would write in a thread, which a full disk ends without a word.
            name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"
            events = RecordWriter(str(folder / name))
            # TensorBoard then hides what an earlier, killed process noted from there on.
            start = self._resume_step + 1
            events.write(_event(start, file_version="brain.Event:2"))
            events.write(_event(start, session_log=SessionLog(status=SessionLog.START)))
            events.flush()
        with writing(path):
            return path.open("a", encoding="utf-8"), events


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The rows of WORKDIR/metrics.jsonl in the order of writing; none if there is no such file.

    A last line that was torn by a kill is left out.

    Raises:
      InputError: another line is not a JSON object with a whole-numbered `step`.
    """
    path = workdir / _FILE
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError:  # a torn UTF-8 character is one, too
            row = None
        if isinstance(row, dict) and type(row.get("step")) is int:
            rows.append(row)
        elif number < len(lines):
            raise InputError(
                f"{path}, line {number} is not a row of metrics ({line[:40]!r}); remove the line"
            )
    return rows


def _event(step: int, **content: Any) -> bytes:
    return Event(step=step, wall_time=time.time(), **content).SerializeToString()


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


def _number(value: Any) -> int | float | None:
    value = value.item() if hasattr(value, "item") else value
    return value if math.isfinite(value) else None

"""Draws phantoms on all cores, in order.

Drawing consists of many small NumPy calls, which threads do not speed up (measured: 7.3 ms per
phantom of 96 px with one thread or two). `multiprocessing` would import the caller's `__main__`
again, including JAX and unguarded scripts, and forking a process that runs JAX is not safe. So each
worker is a fresh interpreter that imports only this module and writes its phantoms to a pipe.
Starting one costs about 1 s of processor time, as much as 130 phantoms.
"""

import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator

import cv2
import numpy as np

from tfds_rsna.hand_phantom.render import Phantom, make_phantom

_LABELS = struct.Struct("<d?")  # bone age, male
_WORK = f"from {__name__} import work; work()"
_WORTHWHILE = 256  # phantoms; fewer are drawn sooner than workers start (about 1 s)


def draw_many(split: str, count: int, size: int, processes: int | None = None) -> Iterator[Phantom]:
    """Yields phantoms 0 ... count - 1 of a split, in order.

    Args:
      split: train, validation or test.
      count: number of phantoms.
      size: side in pixels.
      processes: number of workers; all cores by default, 1 draws in this process.

    Raises:
      RuntimeError: a worker ended early (killed, out of memory); its output is on standard error.
    """
    processes = min(processes or _cores(), count)
    if processes < 2 or count < _WORTHWHILE or not sys.executable:
        yield from (make_phantom(index, size, split) for index in range(count))
        return
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    workers: list[subprocess.Popen[bytes]] = []
    try:
        for first in range(processes):
            task = [split, count, size, first, processes]
            command = [sys.executable, "-c", _WORK, *map(str, task)]
            workers.append(  # in a group of its own, which Ctrl-C does not reach
                subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, process_group=0)
            )
        for index in range(count):
            yield _receive(workers[index % processes], size)
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _receive(worker: subprocess.Popen[bytes], size: int) -> Phantom:
    pixels = size * size
    assert worker.stdout is not None
    record = worker.stdout.read(_LABELS.size + 2 * pixels)
    if len(record) < _LABELS.size + 2 * pixels:
        raise RuntimeError(f"a process that draws phantoms ended with status {worker.wait()}")
    age, male = _LABELS.unpack_from(record)
    planes = np.frombuffer(record, np.uint8, offset=_LABELS.size).reshape(2, size, size)
    return Phantom(planes[0], planes[1], age, male)


def work() -> None:
    """Writes a worker's share of the phantoms to standard output.

    The arguments of the process are split, count, size, first index, step.
    """
    split, (count, size, first, step) = sys.argv[1], map(int, sys.argv[2:])
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # ends with the process that reads
    cv2.setNumThreads(1)  # the other workers use the other cores
    out = sys.stdout.buffer
    for index in range(first, count, step):
        phantom = make_phantom(index, size, split)
        out.write(_LABELS.pack(phantom.bone_age, phantom.male))
        out.write(phantom.image.tobytes() + phantom.mask.tobytes())
    out.flush()

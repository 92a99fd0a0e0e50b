"""Ctrl-C ends a command at once, with one line and status 130, whatever it is doing.

KeyboardInterrupt is not safe here. Raised during a compilation it ends in SIGSEGV: jax's exit
handler (jax._src.api.clean_up) frees the backend that threads of XLA still compile with. Raised
while jaxlib is imported it aborts the process, since nanobind cannot pass it on; raised in jaxlib's
callback of the garbage collector it is printed and forgotten. So a thread of its own ends the
process by `os._exit`, which runs no exit handlers. Files are written under another name first, so
nothing is lost; what has temporary folders or child processes is inside `cleans_up`, and is unwound
by KeyboardInterrupt.
"""

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

STATUS = 130  # 128 + SIGINT, as shells report it
_REACTION = 1.0  # seconds until the main thread counts as stuck in a call
_CLEAN_UP = 10.0  # seconds for removing temporary folders and ending child processes

_depth = 0  # of `cleans_up`
_unwinding = threading.Event()  # KeyboardInterrupt was raised
_ending = threading.Lock()


def end_on_interrupt(clean_up_seconds: float = _CLEAN_UP) -> None:
    """Lets SIGINT end the process from now on; for commands, called in the main thread.

    Does nothing where SIGINT is ignored, as it is for commands after a shell's `&`, or after an
    earlier call.

    Args:
      clean_up_seconds: how long `cleans_up` may take to unwind.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.signal(signal.SIGINT, _on_signal)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)  # written to at once, by C code
    threading.Thread(
        target=_watch, args=(reader, clean_up_seconds), name="interruption", daemon=True
    ).start()


def leave_interrupts() -> None:
    """Lets SIGINT kill the process: for the exit of the interpreter, which ends other threads."""
    if signal.getsignal(signal.SIGINT) is _on_signal:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextlib.contextmanager
def cleans_up() -> Iterator[None]:
    """Context manager for work that must not end without clean-up: SIGINT raises KeyboardInterrupt.

    For the main thread. A clean-up that takes longer than 10 s is cut off, see `end_on_interrupt`.
    """
    global _depth
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1


def _on_signal(number: int, frame: FrameType | None) -> None:
    if not _depth:
        end_interrupted()
    if not _unwinding.is_set():
        _unwinding.set()
        raise KeyboardInterrupt


def _watch(reader: int, clean_up_seconds: float) -> None:
    while os.read(reader, 1)[0] != signal.SIGINT:
        pass  # another signal
    if _depth and _unwinding.wait(_REACTION):
        select.select([reader], [], [], clean_up_seconds)  # or until the next signal
    end_interrupted()


def end_interrupted() -> NoReturn:
    """Prints one line and ends this process with status 130; the first caller does."""
    if not _ending.acquire(blocking=False):
        threading.Event().wait()
    # Flushed in a thread, and for a moment: the main thread may hold the buffers.
    flush = threading.Thread(target=_flush, daemon=True)
    flush.start()
    flush.join(_REACTION)
    os.write(2, b"\ninterrupted\n")
    os._exit(STATUS)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()

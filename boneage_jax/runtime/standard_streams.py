"""Text of this process: standard streams and file names, whatever shell and locale started it."""

import contextlib
import io
import os
import sys


def use_utf8() -> None:
    """Restarts this process in Python's UTF-8 mode, unless file names are UTF-8 already.

    TensorStore and array_record take every name for UTF-8. In a locale of another encoding they
    would write a checkpoint beside the folder that Python means. Same process id, same arguments.
    """
    if sys.getfilesystemencoding() == "utf-8" or sys.flags.utf8_mode:
        return
    os.environ["PYTHONUTF8"] = "1"  # for child processes
    with contextlib.suppress(OSError):
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def open_standard_streams() -> None:
    """Opens the standard streams that are closed, and lets the others write every character.

    A daemon or `2>&-` starts a process without some of them. The next files that it opens would
    take their numbers, and messages written to standard error would land in a checkpoint.

    A file name that is not UTF-8, or a ± where the locale is ASCII, is written with backslashes
    instead of ending the command.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", closefd=False))  # noqa: SIM115
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):  # not a stand-in of a test or a notebook
            with contextlib.suppress(ValueError, OSError):
                stream.reconfigure(errors="backslashreplace")

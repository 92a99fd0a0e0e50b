"""Ctrl-C: one line and status 130, at once or after the clean-up of what asks for one."""

import signal
import subprocess
import sys
import time

import pytest

# Stages of a command: stuck in a call (as in XLA's compiler), in Python, inside `cleans_up`, with a
# clean-up that hangs, and with SIGINT ignored, as after a shell's `&`.
_COMMAND = """
import contextlib, ctypes, signal, sys, time
from boneage_jax.cli import run_door
from boneage_jax.runtime.interruption import cleans_up, end_on_interrupt

def main(argv):
    cleaned = argv[0] in ("cleans", "stuck in clean-up", "twice")
    with cleans_up() if cleaned else contextlib.nullcontext():
        stage(argv[0])

def stage(name):
    try:
        print("ready", flush=True)
        if name == "stuck":
            ctypes.CDLL(None).sleep(60)  # no bytecode until it returns
        time.sleep(1 if name == "ignored" else 60)
    finally:
        if name == "cleans":
            print("cleaned", flush=True)
        elif name == "stuck in clean-up":
            ctypes.CDLL(None).sleep(60)
        elif name == "twice":
            print("ready", flush=True)
            time.sleep(60)

# The shell that runs the tests may have been started in the background, which ignores SIGINT.
ignored = sys.argv[1] == "ignored"
signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.default_int_handler)
if sys.argv[1] == "stuck in clean-up":
    end_on_interrupt(clean_up_seconds=0.2)
run_door(main, computes=False)
"""


@pytest.mark.parametrize(
    ("stage", "signals", "status", "printed"),
    [
        ("python", 1, 130, ""),
        ("stuck", 1, 130, ""),
        ("cleans", 1, 130, "cleaned\n"),
        ("stuck in clean-up", 1, 130, ""),
        ("twice", 2, 130, ""),
        ("ignored", 1, 0, ""),
    ],
)
def test_ctrl_c_is_one_line_and_status_130(stage, signals, status, printed):
    with subprocess.Popen(
        [sys.executable, "-c", _COMMAND, stage],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        for _ in range(signals):
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGINT)
        began = time.monotonic()
        out, err = process.communicate(timeout=30)
    assert process.returncode == status and out == printed
    assert err.split() == (["interrupted"] if status else [])
    assert time.monotonic() - began < 10

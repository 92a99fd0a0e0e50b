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
from boneage_jax.runtime import interruption
from boneage_jax.runtime.interruption import cleans_up

def main(argv):
    print("ready", flush=True)
    if argv[0] == "stuck":
        ctypes.CDLL(None).sleep(60)  # no bytecode until it returns
    elif argv[0] == "python":
        time.sleep(60)
    elif argv[0] == "cleans":
        with cleans_up():
            try:
                time.sleep(60)
            finally:
                print("cleaned", flush=True)
    elif argv[0] == "stuck in clean-up":
        interruption._CLEAN_UP = 0.2
        with cleans_up():
            try:
                time.sleep(60)
            finally:
                ctypes.CDLL(None).sleep(60)
    elif argv[0] == "twice":
        with cleans_up():
            try:
                time.sleep(60)
            finally:
                print("ready", flush=True)
                time.sleep(60)
    elif argv[0] == "ignored":
        time.sleep(1)

if sys.argv[1] == "ignored":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
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
        # The shell that runs the tests may have been started in the background.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
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

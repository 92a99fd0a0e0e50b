"""Runs that are asked to end: what they save, how they exit, and how they go on."""

import os
import signal
import threading

import pytest

from boneage_jax.cli import exit_status
from boneage_jax.errors import Stopped
from boneage_jax.runtime.preemption import listen


def test_a_signal_is_noted_where_there_is_something_to_save_and_obeyed_elsewhere(capfd):
    before = signal.getsignal(signal.SIGTERM)
    with listen() as stopping, stopping.deferred():
        assert stopping.reason == ""
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopping.reason == stopping.reason_for_all(7, 10) == "SIGTERM"
        with pytest.raises(Stopped):  # a second one does not wait for the step
            os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Stopped), listen():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
    assert "ending after this step" in capfd.readouterr().err


def test_the_clock_is_that_of_the_outermost_training(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with listen(60.0) as outer:
        now[0] += 59.0
        with listen(60.0) as member:
            assert member is outer and member.reason == ""
            now[0] += 1.0
            assert member.reason == "config.max_seconds=60 are over"
    with listen() as stopping:
        now[0] += 1e9
        assert stopping.reason == ""


def test_in_another_thread_only_the_clock_counts():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work():
        with listen(1e-9) as stopping:
            seen.append((stopping.reason, signal.getsignal(signal.SIGTERM) is before))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [("config.max_seconds=1e-09 are over", True)]


def test_a_stopped_run_ends_with_the_status_that_schedulers_requeue(capsys):
    def main(argv):
        try:
            raise Stopped("SIGTERM: saved at step 3 of 8")
        except Exception:  # as libraries in between may have it
            raise AssertionError("swallowed") from None

    assert exit_status(main) == 75
    assert capsys.readouterr().err == "SIGTERM: saved at step 3 of 8\n"

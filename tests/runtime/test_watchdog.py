"""Runs that stand still are ended, and say what they waited for."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from boneage_jax.runtime.watchdog import (
    NO_LIMIT,
    Watchdog,
    waiting_for,
    waiting_for_nothing,
    waiting_without_limit,
)
from tests.support.tiny_run import TINY_RUN, arguments

ROOT = Path(__file__).parents[2]


def until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def test_what_was_waited_for_is_named():
    said = []
    with Watchdog(0.2, said.append) as watch:
        watch.waits_for("the next batch")
        assert until(lambda: said)
    assert said == [
        "stalled: waited 0 s for the next batch (config.stall_seconds=0.2); the same command goes "
        "on from the last checkpoint"
    ]


def test_signs_of_life_patience_and_rest():
    said = []
    with Watchdog(0.5, said.append) as watch:
        for _ in range(10):
            watch.waits_for("the step")
            time.sleep(0.1)
        watch.waits_for("the checkpoint", patience=100.0)
        time.sleep(1.0)
        watch.waits_for("the preparation of the data", NO_LIMIT)
        time.sleep(1.0)
        watch.rests()
        time.sleep(1.0)
    assert not said


def test_switched_off_there_is_no_thread():
    before = threading.active_count()
    with Watchdog(0.0) as watch:
        watch.waits_for("ever")
        assert threading.active_count() == before
    with Watchdog(9.0):
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


def test_each_batch_of_the_last_evaluation_is_a_sign_of_life(tiny_train):
    """Of each member, 32 images in batches of 12, and of the ensemble, all members' images again.

    Otherwise one that takes longer than the limit would end every start the same way.
    """
    words = []

    class Noting(Watchdog):
        def waits_for(self, what, patience=1.0):
            words.append(what)
            super().waits_for(what, patience)

    with Noting(3600.0):  # it hears what the watch of the run would, which is inside it
        tiny_train(members=2, steps=2)
    evaluations = 2 + 2  # of each member at its last step, which its report takes; of the ensemble
    assert words.count("the evaluation") == evaluations * (1 + 3)
    # What comes before the first step is watched as well.
    first, step = words.index("the data"), words.index("the step and its compilation")
    assert words.index("the workdir") < first < step
    assert words.count("the step and its compilation") == 2


def test_waiting_is_noted_from_anywhere_while_a_watch_is_on():
    said = []
    waiting_for("nobody listens")
    with Watchdog(0.3, said.append), Watchdog(0.01, said.append):  # the inner one does nothing
        waiting_for("the next batch")
        assert until(lambda: said)
        waiting_for_nothing()
    assert len(said) == 1 and "waited 0 s for the next batch" in said[0]
    waiting_for("nobody listens")


def test_what_may_take_hours_has_no_limit_whatever_its_parts_say():
    """Preparing data with the masks of a U-Net restores a checkpoint on the way."""
    said = []
    with Watchdog(0.1, said.append):
        with waiting_without_limit("the preparation of the data"):
            waiting_for("the checkpoint", 3.0)
            time.sleep(0.8)
        assert not said
        waiting_for("the data")
        assert until(lambda: said)
    assert "for the data" in said[0]


def test_a_stalled_pipeline_ends_with_the_status_that_schedulers_requeue(phantoms, tmp_path):
    environment = os.environ | {
        "TFDS_DATA_DIR": phantoms,
        "PYTHONPATH": str(ROOT),
        "AT": "5",
        "HAPPENS": "hang",
    }
    command = [
        sys.executable,
        *TINY_RUN,
        *arguments(tmp_path, stall_seconds=8.0),
    ]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 75, done.stderr[-2000:]
    assert "stalled: waited 8 s for the next batch" in done.stderr
    assert "Traceback" not in done.stderr
    steps = [int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()]
    assert steps and max(steps) in (2, 4)

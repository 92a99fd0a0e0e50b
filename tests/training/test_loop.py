"""What the loop waits for, and what it says it waits for: steps handed in, no network."""

import contextlib
import dataclasses
import threading
import time
from types import SimpleNamespace

import jax
import pytest

from boneage_jax.errors import Stopped
from boneage_jax.runtime.watchdog import Watchdog
from boneage_jax.training.loop import Loop


class Steps:
    """Steps of a device that computes only while the host waits: how many are queued at a time."""

    def __init__(self, seconds=()):
        self.started, self.done, self.most = 0, 0, 0
        self._seconds = dict(enumerate(seconds))

    def __call__(self, state, metrics, batch):
        self.started += 1
        self.most = max(self.most, self.started - self.done)
        wait = self._seconds.get(batch)
        wait() if callable(wait) else time.sleep(wait or 0)
        return state, dataclasses.replace(metrics, total=Ticket(self, self.started))


@dataclasses.dataclass
class Ticket:
    """What a step returns before it has run."""

    steps: Steps
    number: int

    def block_until_ready(self):
        self.steps.done = max(self.steps.done, self.number)
        return self

    def __int__(self):
        return 0


@dataclasses.dataclass
class Metrics:
    total: object = 0

    def emptied(self, empty):
        return empty


def run_loop(step, until, platform="tpu", devices=1):
    """Runs steps until `until`, where the run is asked to stop; returns what the log heard."""
    noted = []
    config = SimpleNamespace(nonfinite="skip", log_every=4, checkpoint_every=0)
    device = SimpleNamespace(platform=platform)
    run = SimpleNamespace(
        config=config,
        total_steps=100,
        evaluate_every=1000,
        task=SimpleNamespace(metrics_type=SimpleNamespace(empty=lambda: None)),
        parallel=SimpleNamespace(
            mode="jit",
            put_state=lambda _: Metrics(),
            as_global=lambda state: state,
            devices=[device] * devices,
            device_count=devices,
        ),
        train_step_at=lambda _: step,
    )
    log = SimpleNamespace(
        guard=SimpleNamespace(total=0),
        note=lambda metrics, step, done, bar: noted.append((step, done)),
        flush=lambda bar: False,
        restart_clock=lambda step: None,
    )
    checkpoints = SimpleNamespace(
        reached_preemption=lambda step: False,
        save=lambda *_: None,
        wait=lambda: None,
    )
    asked = iter(range(1, until + 1))
    stopping = SimpleNamespace(reason_for_all=lambda *_: "asked" if next(asked) == until else "")
    loop = Loop(run, log, checkpoints, None, stopping, 0)
    with pytest.raises(Stopped) as stopped:
        loop.run_steps({"x": jax.numpy.zeros(2)}, iter(range(100)))
    assert stopped.value.message.startswith(f"asked: saved at step {until} of 100")
    return noted


def test_the_host_runs_two_steps_ahead_and_waits_for_the_first(capfd):
    steps = Steps()
    noted = run_loop(steps, 10)
    assert steps.most == 3  # one that runs and two behind it
    # Of the steps of a log line, only those known to be done count for its speed.
    assert noted == [(4, 2), (8, 6), (10, 8)]


def test_simulated_devices_get_one_step_at_a_time(capfd):
    steps = Steps()
    run_loop(steps, 6, platform="cpu", devices=2)
    assert steps.most == 1


def test_compiling_may_take_longer_than_a_step(capfd):
    ended = threading.Event()
    said = []

    def end(message):
        said.append(message)
        ended.set()

    with Watchdog(0.4, end):
        # The first call compiles: 0.8 s are less than three times the limit of a step.
        run_loop(Steps([0.8]), 2)
        assert not said
        with contextlib.suppress(TimeoutError):
            run_loop(Steps([0, lambda: ended.wait(20)]), 3)
    assert len(said) == 1 and "for the step (config.stall_seconds=0.4)" in said[0]

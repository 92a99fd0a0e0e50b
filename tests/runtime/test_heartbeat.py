"""Processes of a job that watch each other, over a store in memory."""

import time

import pytest

from boneage_jax.errors import PeerLost, Stopped
from boneage_jax.runtime.heartbeat import Heartbeat


class Store:
    """The three calls of JAX's key-value store that are used, for one process among others."""

    def __init__(self):
        self.values = {}
        self.broken = ""

    def key_value_set(self, key, value, allow_overwrite=False):
        assert allow_overwrite
        self.values[key] = value

    def key_value_dir_get(self, folder):
        if self.broken:
            raise RuntimeError(self.broken)
        return [(k, v) for k, v in self.values.items() if k.startswith(folder + "/")]


def until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def test_a_process_that_falls_silent_is_named():
    store, said = Store(), []
    store.values["boneage_jax/heartbeat/3"] = "7"
    with Heartbeat(0.4, said.append, store):
        assert until(lambda: said)
    assert "no sign of life from process 3" in said[0] and said[0].startswith("process 0:")


def test_those_that_live_or_have_left_are_not_missed():
    store, said = Store(), []
    store.values["boneage_jax/heartbeat/1"] = "left"
    with Heartbeat(0.4, said.append, store):
        for beat in range(20):
            store.values["boneage_jax/heartbeat/2"] = str(beat)
            time.sleep(0.05)
        assert int(store.values["boneage_jax/heartbeat/0"]) >= 0
    assert not said
    assert store.values["boneage_jax/heartbeat/0"] == "left"


def test_one_that_never_began_is_missed_where_it_is_expected():
    store, said = Store(), []
    with Heartbeat(0.4, said.append, store):
        time.sleep(0.8)
    assert not said
    began = time.monotonic()
    with Heartbeat(0.4, said.append, store, expected=2):
        assert until(lambda: said)
    assert "no sign of life from process 1" in said[0]
    assert time.monotonic() - began > 0.3  # not before its time


def test_a_training_within_another_leaves_with_that():
    store = Store()
    with Heartbeat(9.0, print, store):
        assert until(lambda: store.values)
        with Heartbeat(9.0, print, store):
            pass
        assert store.values["boneage_jax/heartbeat/0"] != "left"
    assert store.values["boneage_jax/heartbeat/0"] == "left"


@pytest.mark.parametrize(
    ("error", "left"),
    [
        (Stopped("all were told"), True),
        (Stopped("SIGTERM while starting", alone=True), False),
        (PeerLost("gone"), False),
        (ValueError("no"), False),
    ],
)
def test_only_a_process_that_ends_in_good_order_says_that_it_left(error, left):
    store = Store()
    with pytest.raises(type(error)), Heartbeat(9.0, print, store):
        assert until(lambda: store.values)
        raise error
    assert (store.values["boneage_jax/heartbeat/0"] == "left") is left


def test_a_coordinator_that_does_not_answer():
    store, said = Store(), []
    with Heartbeat(0.4, said.append, store):
        store.broken = "INTERNAL: something else"
        time.sleep(0.3)
        assert not said
        store.broken = "UNAVAILABLE: failed to connect to all addresses"
        assert until(lambda: said)
    assert "the coordinator, process 0, does not answer" in said[0]


def test_alone_there_is_nobody_to_watch():
    with Heartbeat() as pulse:
        assert not pulse._thread.is_alive()

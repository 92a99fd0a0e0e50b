"""A job whose processes do not see one and the same workdir: threads, with a store in memory."""

import threading

import pytest

from boneage_jax.errors import InputError
from boneage_jax.runtime import distributed
from boneage_jax.storage import shared_workdir


class Store:
    """The two calls of JAX's key-value store that a question needs."""

    def __init__(self):
        self.values = {}

    def key_value_set(self, key, value):
        assert key not in self.values
        self.values[key] = value

    def key_value_dir_get(self, folder):
        return [(k, v) for k, v in dict(self.values).items() if k.startswith(folder + "/")]


@pytest.fixture
def job(monkeypatch):
    """Runs a function of the process' index as each process of a job, returns what each raised."""
    here, store = threading.local(), Store()

    class Counter:
        def __next__(self):
            here.asked = getattr(here, "asked", -1) + 1
            return here.asked

    monkeypatch.setattr(distributed, "place", lambda: (here.index, 2))
    monkeypatch.setattr(distributed, "store", lambda: store)
    monkeypatch.setattr(shared_workdir, "store", lambda: store)
    monkeypatch.setattr(distributed, "_asked", Counter())
    monkeypatch.setattr(shared_workdir, "process", lambda: (here.index, 2))
    monkeypatch.setattr(shared_workdir, "_SEEN_WITHIN", 0.3)

    def run(function):
        raised = [None, None]

        def as_process(index):
            here.index = index
            try:
                function(index)
            except InputError as error:
                raised[index] = str(error)

        threads = [threading.Thread(target=as_process, args=[i]) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()
        return raised

    return run


def test_one_folder_for_all(job, tmp_path):
    assert job(lambda index: shared_workdir.check_shared(tmp_path)) == [None, None]
    assert not list(tmp_path.iterdir())


def test_a_folder_for_each(job, tmp_path):
    for index in range(2):
        (tmp_path / str(index)).mkdir()
    one, other = job(lambda index: shared_workdir.check_shared(tmp_path / str(index)))
    assert "--workdir must be a folder that all processes share" in one
    assert "process 1 does not see" in one and "process 1 does not see" in other
    assert not list(tmp_path.glob("*/.*"))


@pytest.mark.parametrize(
    ("steps", "alike"), [((8, 8), True), ((None, None), True), ((8, 4), False)]
)
def test_the_newest_checkpoint_is_the_same_for_all(job, steps, alike):
    raised = job(lambda index: shared_workdir.check_same_step(lambda: steps[index]))
    if alike:
        assert raised == [None, None]
    else:
        assert raised[0] == raised[1] and "all processes share" in raised[0]
        assert "(0: 8, 1: 4)" in raised[0]


def test_an_old_answer_of_a_disk_is_asked_again(job):
    answers = [iter([8]), iter([4, 8])]
    last = {0: 8, 1: 8}
    raised = job(
        lambda index: shared_workdir.check_same_step(lambda: next(answers[index], last[index]))
    )
    assert raised == [None, None]


def test_alone_there_is_nobody_to_ask(tmp_path):
    shared_workdir.check_shared(tmp_path)
    assert shared_workdir.check_same_step(lambda: 3) == 3
    assert not list(tmp_path.iterdir())

"""A job whose processes do not see one and the same workdir: threads, with a store in memory."""

import threading

import jax
import pytest

from boneage_jax.errors import InputError
from boneage_jax.storage import shared_workdir
from boneage_jax.storage.layout import LOCK
from boneage_jax.storage.workdir_lock import locked_workdir


class Client:
    """The two calls of JAX's key-value store that an exchange needs.

    Threads share the counter that numbers the exchanges of a process, so each counts its own here.
    """

    def __init__(self, values):
        self.values, self.asked = values, 0

    def key_value_set(self, key, value):
        folder, _, index = key.rpartition("/")
        self.folder, self.asked = f"{folder.rpartition('/')[0]}/{self.asked}", self.asked + 1
        assert f"{self.folder}/{index}" not in self.values
        self.values[f"{self.folder}/{index}"] = value

    def key_value_dir_get(self, _):
        return [(k, v) for k, v in dict(self.values).items() if k.startswith(self.folder + "/")]


class Job(threading.local):
    """JAX's state of a process of a job; each thread is a process."""

    process_id, num_processes, client = 0, 2, None


@pytest.fixture
def job(monkeypatch):
    """Runs a function of the process' index as each process of a job, returns what each raised."""
    here = Job()
    monkeypatch.setattr(jax._src.distributed, "global_state", here)

    def run(function):
        raised, values = [None, None], {}

        def as_process(index):
            here.process_id, here.client = index, Client(values)
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
    one, other = job(lambda index: shared_workdir.check_shared(tmp_path / str(index), 0.3))
    assert "--workdir must be a folder that all processes share" in one
    assert "process 1 does not see" in one and "process 1 does not see" in other
    assert not list(tmp_path.glob("*/.*"))


@pytest.mark.parametrize(
    ("steps", "alike"), [((8, 8), True), ((None, None), True), ((8, 4), False)]
)
def test_the_newest_checkpoint_is_the_same_for_all(job, steps, alike):
    raised = job(lambda index: shared_workdir.check_same_step(lambda: steps[index], 0.3))
    if alike:
        assert raised == [None, None]
    else:
        assert raised[0] == raised[1] and "all processes share" in raised[0]
        assert "(0: 8, 1: 4)" in raised[0]


def test_an_old_answer_of_a_disk_is_asked_again(job):
    answers = [iter([8]), iter([4, 8])]
    last = {0: 8, 1: 8}
    raised = job(
        lambda index: shared_workdir.check_same_step(lambda: next(answers[index], last[index]), 0.3)
    )
    assert raised == [None, None]


def test_process_0_locks_and_all_are_refused(job, tmp_path):
    """The others neither lock nor write, and raise what process 0 found."""

    def enter(index):
        with locked_workdir(tmp_path / str(index)):
            pass

    folders = [tmp_path / "0", tmp_path / "1"]
    for folder in folders:
        folder.mkdir()
    with locked_workdir(folders[0]):  # as a training of its own
        one, other = job(enter)
    assert one == other and f"{folders[0]} is in use" in one
    assert job(enter) == [None, None]
    assert {*tmp_path.rglob("*")} == {*folders, folders[0] / LOCK}


def test_alone_there_is_nobody_to_ask(tmp_path):
    shared_workdir.check_shared(tmp_path)
    assert shared_workdir.check_same_step(lambda: 3) == 3
    assert not list(tmp_path.iterdir())

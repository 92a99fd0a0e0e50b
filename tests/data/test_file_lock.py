"""The lock between processes, against processes that hold it by the kernel's own call."""

import errno
import subprocess
import sys
import threading

import pytest

from boneage_jax.data.file_lock import locked, take_lock

_HOLD = """
import fcntl, sys, time
with open(sys.argv[1], "w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    print("held", flush=True)
    time.sleep(60)
"""
_FORK = """
import os, sys
from pathlib import Path
from boneage_jax.data.file_lock import locked

with locked(Path(sys.argv[1]), sys.exit):
    child = os.fork()
    if not child:
        sys.exit()  # leaves the block
    os.waitpid(child, 0)
    print("child has ended", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock `tmp_path / ".lock"`."""
    command = [sys.executable, "-c", _HOLD, tmp_path / ".lock"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def is_held(path):
    code = "import fcntl, sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    command = [sys.executable, "-c", code, path]
    return subprocess.run(command, capture_output=True, check=False).returncode != 0


def test_a_killed_process_leaves_nothing_locked(tmp_path, holder):
    path, waited, entered = tmp_path / ".lock", [], threading.Event()

    def enter():
        with locked(path, lambda: waited.append(True)):
            entered.set()

    with pytest.raises(TimeoutError):
        take_lock(path)
    thread = threading.Thread(target=enter)
    thread.start()
    assert not entered.wait(0.5)
    holder.kill()
    thread.join(30)
    assert entered.is_set() and waited == [True]
    assert path.read_bytes() == b"" and not is_held(path)


def test_other_processes_stay_out_until_the_end(tmp_path):
    path = tmp_path / ".lock"
    with pytest.raises(KeyError), locked(path, pytest.fail):
        assert is_held(path)
        raise KeyError
    assert path.exists() and not is_held(path)


def test_a_forked_child_that_ends_does_not_open_the_lock(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", _FORK, tmp_path / ".lock"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"child has ended\n"
        assert is_held(tmp_path / ".lock")
        process.communicate(b"\n")
    assert process.returncode == 0 and not is_held(tmp_path / ".lock")


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP])
def test_a_file_system_without_locks_lets_everybody_in(tmp_path, monkeypatch, code):
    def refuse(*_):
        raise OSError(code, "no locks")

    monkeypatch.setattr("fcntl.flock", refuse)
    with locked(tmp_path / ".lock", pytest.fail), locked(tmp_path / ".lock", pytest.fail):
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"), locked(tmp_path / "file" / ".lock", pytest.fail):
        pass

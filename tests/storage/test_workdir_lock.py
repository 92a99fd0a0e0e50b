"""Two trainings in one workdir: the second one is refused, a killed one blocks nobody."""

import errno
import os
import socket
import subprocess
import sys

import pytest

from boneage_jax.errors import InputError
from boneage_jax.storage.layout import LOCK
from boneage_jax.storage.workdir_lock import locked_workdir

_HOLD = """
import fcntl, sys, time
with open(sys.argv[1], "w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    file.write("process 42 on elsewhere\\n")
    file.flush()
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_second_names_the_first_and_enters_after_it(tmp_path):
    folder = tmp_path / "run [1]*"
    with locked_workdir(folder):
        with pytest.raises(InputError) as error, locked_workdir(folder):
            pass
        line = str(error.value)
        assert f"process {os.getpid()} on {socket.gethostname()} trains there" in line
        assert str(folder) in line and "\n" not in line
    with locked_workdir(folder):
        assert [path.name for path in folder.iterdir()] == [LOCK]


def test_a_killed_run_blocks_nobody(tmp_path):
    command = [sys.executable, "-c", _HOLD, tmp_path / LOCK]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="process 42 on elsewhere"), locked_workdir(tmp_path):
            pass
        holder.kill()
    with locked_workdir(tmp_path):
        pass


def test_a_file_system_without_locks_lets_everybody_in(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr("fcntl.flock", refuse)
    with locked_workdir(tmp_path), locked_workdir(tmp_path):
        pass


def test_a_workdir_in_a_bucket_is_not_locked(tmp_path):
    (tmp_path / ".bucket").write_text("gs://bucket/run")
    with locked_workdir(tmp_path), locked_workdir(tmp_path):
        assert not (tmp_path / LOCK).exists()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"), locked_workdir(tmp_path / "file/a"):
        pass

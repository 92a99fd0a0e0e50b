"""What the machine lacks ends a command with one line; faults of the code keep their traceback."""

import errno
import os

import jax
import numpy as np
import pytest

from boneage_jax.cli import exit_status, run_door
from boneage_jax.errors import InputError
from boneage_jax.runtime.machine_errors import check_devices, machine_error


def os_error(code: int, name: str | None = "a/b") -> OSError:
    return OSError(code, os.strerror(code), name)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (os_error(errno.ENAMETOOLONG), "a/b: File name too long; name a shorter one"),
        (os_error(errno.EROFS), "a/b: Read-only file system; name a writable one"),
        (os_error(errno.EMFILE, None), "Too many open files; raise ulimit -n"),
        (MemoryError(), "out of memory (of this machine); take fewer images at a time"),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating\n 8 bytes."),
            "out of memory (RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.); take fewer",
        ),
        (
            ValueError('Invalid value "x" for JAX flag jax_num_cpu_devices'),
            "; change JAX_NUM_CPU_DEVICES in the environment",
        ),
        (os_error(errno.ENOENT), ""),  # most of these are ours
        (OSError("no number"), ""),
        (RuntimeError("a step was compiled more than once"), ""),
        (ValueError("operands could not be broadcast together"), ""),
    ],
)
def test_errors_of_the_machine(error, line, capsys):
    assert line in machine_error(error) and "\n" not in machine_error(error)

    def main(argv):
        raise error

    if not line:
        with pytest.raises(type(error)):
            exit_status(main)
        return
    assert exit_status(main) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and line in said and said.count("\n") == 1


def test_an_array_larger_than_memory():
    with pytest.raises(MemoryError) as caught:
        np.empty(1 << 60, np.uint8)
    assert machine_error(caught.value).startswith("out of memory (Unable to allocate 1.00 EiB")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (RuntimeError("Unable to initialize backend 'x': y. (set JAX_PLATFORMS='' to"), "'x': y."),
        (AssertionError(), "no plugin of JAX for x is installed"),
    ],
)
def test_devices_that_are_not_there(error, says, monkeypatch):
    def fails():
        raise error

    monkeypatch.setattr(jax, "devices", fails)
    monkeypatch.setenv("JAX_PLATFORMS", "x")
    with pytest.raises(InputError, match=f"^JAX_PLATFORMS=x: .*{says}; unset it"):
        check_devices()
    monkeypatch.delenv("JAX_PLATFORMS")  # then no setting is at fault
    with pytest.raises(type(error)):
        check_devices()


def test_a_current_folder_that_was_removed(tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert exit_status(lambda argv: 0) == 2
    assert "the current folder cannot be used (No such file" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("typed", "taken"),
    [
        ("--workdir=~/runs", "--workdir=/home/ada/runs"),
        ("--config.data.raw_dir=~/a=b", "--config.data.raw_dir=/home/ada/a=b"),
        ("~/x.png", "/home/ada/x.png"),
        ("./~/x.png", "./~/x.png"),
        ("--output=a~b", "--output=a~b"),
    ],
)
def test_a_tilde_is_the_home(typed, taken, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setattr("sys.argv", ["command", typed])
    monkeypatch.setenv("MPLBACKEND", "nonsense")
    found = []
    monkeypatch.setattr("gc.set_threshold", lambda *_: None)
    monkeypatch.setattr("gc.freeze", lambda: None)
    with pytest.raises(SystemExit) as stop:
        run_door(found.extend, computes=False)
    assert (stop.value.code, found) == (0, [taken])
    assert os.environ["MPLBACKEND"] == "agg"

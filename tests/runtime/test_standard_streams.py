"""Processes started with closed streams, in old locales, with names that are no text."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
START = "from boneage_jax.runtime.standard_streams import *; use_utf8(); open_standard_streams()\n"


def run(code: str, redirect: str, *arguments: bytes, **environment: str) -> bytes:
    """Returns what a fresh process leaves in a file, opened as the first thing after the start."""
    command = f'exec "$@" {redirect}'
    done = subprocess.run(
        ["bash", "-c", command, "bash", sys.executable, "-c", START + code, *arguments],
        cwd=ROOT, env=os.environ | environment, capture_output=True, check=True,
    )  # fmt: skip
    return done.stdout


@pytest.mark.parametrize("redirect", ["", "<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_messages_never_land_in_a_file(redirect, tmp_path):
    code = """
import os, sys
file = open(sys.argv[1], "w")
os.write(2, b"SIGTERM")
os.write(1, b"result")
print("result", "error", file=sys.stdout)
print("error", sys.stderr.isatty(), sys.stdin.read(), file=sys.stderr)
file.write("checkpoint")
"""
    run(code, redirect, os.fsencode(tmp_path / "file"))
    assert (tmp_path / "file").read_bytes() == b"checkpoint"


@pytest.mark.parametrize(
    ("argument", "redirect", "status"), [("--version", ">&-", 0), ("nothing", "2>&-", 2)]
)
def test_a_command_without_a_stream_ends_as_with_it(argument, redirect, status):
    command = [sys.executable, "-m", "boneage_jax.compare", argument]
    done = subprocess.run(["bash", "-c", f'"$@" {redirect}', "bash", *command], cwd=ROOT)
    assert done.returncode == status


def test_every_text_can_be_printed():
    code = "import sys; print(sys.argv[1], '±'); print(sys.argv[1], file=sys.stderr)"
    said = run(code, "2>&1", b"a\xff.png", PYTHONIOENCODING="ascii")
    assert said == b"a\\udcff.png \\xb1\na\\udcff.png\n"


@pytest.mark.parametrize("flags", [(), ("-I",), ("-E",)])
def test_file_names_are_utf_8_in_every_locale(flags, tmp_path):
    """Checked by the bytes of the name on disk, and by TensorStore, which knows UTF-8 alone."""
    code = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
{START}
import pathlib, tensorstore
folder = pathlib.Path(sys.argv[1])
(folder / "python").touch()
open = {{"driver": "file", "path": str(folder / "tensorstore")}}
tensorstore.KvStore.open(open).result().write("", b"x").result()
print(sys.argv[2])
"""
    folder = tmp_path / "Läufe"
    folder.mkdir()
    old = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, *flags, "-c", code, folder, "ä"],
        env=os.environ | old, capture_output=True, text=True, encoding="utf-8",
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("ä\n", "")
    assert sorted(path.name for path in folder.iterdir()) == ["python", "tensorstore"]
    assert [path.name for path in tmp_path.iterdir()] == ["Läufe"]

"""Doors start again with huge pages: once, with the same arguments, and only where it can help."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from boneage_jax.runtime.cpu_memory import TUNABLES, _glibc, close_holes, use_huge_pages

_SHOW = """
import os, sys
from boneage_jax.runtime.cpu_memory import use_huge_pages
started = os.environ.get("STARTED", "")
os.environ["STARTED"] = f"{started} {os.getpid()}".strip()
BEFORE
use_huge_pages()
print(os.environ["STARTED"], os.environ.get("GLIBC_TUNABLES"), *sys.argv[1:], sep="|")
"""


def _show(before: str = "", **environment: str) -> list[str]:
    env = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}
    command = [sys.executable, "-c", _SHOW.replace("BEFORE", before), "--key=a b", "über"]
    done = subprocess.run(
        command, env=env | environment, capture_output=True, text=True, check=True, encoding="utf8"
    )
    return done.stdout.strip().split("|")


@pytest.mark.skipif(_glibc() < (2, 35), reason="needs glibc 2.35: its huge pages")
def test_process_starts_again_once_with_its_arguments() -> None:
    started, tunables, *arguments = _show()
    first, second = started.split()
    assert first == second  # exec keeps the process id: signals and job control still reach it
    assert tunables == TUNABLES
    assert arguments == ["--key=a b", "über"]


@pytest.mark.skipif(_glibc() < (2, 35), reason="needs glibc 2.35: its huge pages")
def test_glibc_takes_the_settings() -> None:
    # An unknown or malformed tunable is reported or ignored; the loader lists what is in force.
    maps = Path("/proc/self/maps").read_text().splitlines()
    loader = next(line.split()[-1] for line in maps if "ld-linux" in line)
    listed = subprocess.run(
        [loader, "--list-tunables"],
        env={"GLIBC_TUNABLES": TUNABLES},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = dict(line.split(": ", 1) for line in listed.splitlines() if ": " in line)
    for key, wanted in {
        "hugetlb": 1,
        "mmap_max": 0,
        "trim_threshold": 1 << 40,
        "arena_max": 1,
    }.items():
        assert int(found[f"glibc.malloc.{key}"].split()[0], 0) == wanted


def test_a_users_own_settings_stand() -> None:
    started, tunables, *_ = _show(GLIBC_TUNABLES="glibc.malloc.arena_max=3")
    assert len(started.split()) == 1
    assert tunables == "glibc.malloc.arena_max=3"


def test_a_process_with_jax_goes_on() -> None:
    started, tunables, *_ = _show(before="sys.modules['jax'] = os")
    assert len(started.split()) == 1
    assert tunables == "None"


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.delitem(sys.modules, "jax")
    monkeypatch.setattr(os, "confstr", lambda name: "musl 1.2")
    monkeypatch.setattr(os, "execv", lambda *args: pytest.fail("started again"))
    use_huge_pages()
    assert "GLIBC_TUNABLES" not in os.environ


@pytest.mark.parametrize("door", ["main", "evaluate", "predict", "segment", "benchmark"])
def test_doors_load_jax_only_behind_the_restart(door: str) -> None:
    code = f"import sys, boneage_jax.{door}; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


_HOLES = """
import ctypes, re
from boneage_jax.runtime.cpu_memory import _MallInfo, close_holes
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes, libc.mallinfo2.restype = [ctypes.c_void_p], _MallInfo
rollup = lambda: open("/proc/self/smaps_rollup").read()
resident = lambda: int(re.search(r"Rss: +([0-9]+)", rollup())[1]) << 10
holes = lambda: (lambda info: info.fordblks - info.keepcost)(libc.mallinfo2())
kept = [bytearray(b"kept") * 25_000 for _ in range(20)]
blocks = [libc.malloc(1 << 14 if i % 2 else 1 << 18) for i in range(800)]
for block in blocks: ctypes.memset(block, 1, 1 << 14)
for block in blocks[::2]: ctypes.memset(block, 1, 1 << 18); libc.free(block)
before, memory = holes(), resident()
taken = close_holes()
print(before, taken, holes(), memory - resident(), close_holes())
assert all(x == bytearray(b"kept") * 25_000 for x in kept)
assert all(ctypes.string_at(block, 4) == bytes([1] * 4) for block in blocks[1::2])
fresh = [bytearray(1 << 18) for _ in range(400)]
for x in fresh: x[:] = b"x" * len(x)
"""


def _holes(tunables: str) -> list[int]:
    env = os.environ | {"GLIBC_TUNABLES": tunables}
    done = subprocess.run(
        [sys.executable, "-c", _HOLES], env=env, capture_output=True, text=True, check=True
    )
    return [int(x) for x in done.stdout.split()]


@pytest.mark.skipif(_glibc() < (2, 35), reason="needs glibc 2.35: its huge pages")
def test_holes_are_taken_and_their_pages_given_back() -> None:
    # 400 free blocks of 256 KiB between blocks in use.
    before, taken, after, given_back, again = _holes(TUNABLES)
    assert before > 400 << 18
    assert taken > 0.9 * (400 << 18)
    assert after < 0.1 * before
    # Each size that no hole has is asked for at the end of the heap: a huge page, some 16 times.
    assert given_back > 0.8 * taken - 16 * (2 << 20)
    assert again < 0.1 * before


@pytest.mark.skipif(_glibc() < (2, 35), reason="needs glibc 2.35: mallinfo2")
def test_other_settings_of_malloc_are_left_alone() -> None:
    _, taken, *_ = _holes("glibc.malloc.arena_max=1")
    assert taken == 0


def test_no_holes_are_sought_in_other_c_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", TUNABLES)
    monkeypatch.setattr(os, "confstr", lambda name: "musl 1.2")
    assert close_holes() == 0

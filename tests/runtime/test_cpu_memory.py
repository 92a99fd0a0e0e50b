"""Memory held between steps: no page is taken from the kernel twice, and all go back at the end."""

import os
import subprocess
import sys

import pytest

from boneage_jax.runtime.cpu_memory import _glibc

needs_glibc = pytest.mark.skipif(_glibc() is None, reason="needs glibc")

# A block of 300 MB is allocated, written and freed, over and over, as XLA does with temporaries.
_BLOCKS = """
import ctypes, gc, re, resource, sys, threading
from boneage_jax.runtime.cpu_memory import hold_memory, held_memory, release_memory, trim
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
SIZE = 300 << 20
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1]) << 10
def step():
    block = libc.malloc(SIZE)
    ctypes.memset(block, 1, SIZE)
    libc.free(block)
def faults_of_a_step():
    before = faults()
    step()
    return faults() - before
"""


def run(code: str, **environment: str) -> list[int]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("GLIBC_TUN", "MALLOC_"))}
    done = subprocess.run(
        [sys.executable, "-c", _BLOCKS + code],
        env=kept | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return [int(x) for x in done.stdout.split()]


@needs_glibc
def test_a_step_finds_the_memory_of_the_one_before() -> None:
    code = """
import jax
step()
print(faults_of_a_step())
before = resident()
with held_memory():
    reserved = resident() - before
    step()
    with held_memory():
        again = faults_of_a_step()
    print(again, faults_of_a_step(), reserved, resident() - before)
print(resident() - before, faults_of_a_step())
"""
    default, nested, held, reserved, kept, left, after = run(code)
    pages = (300 << 20) // os.sysconf("SC_PAGE_SIZE")
    assert default > 0.9 * pages and after > 0.9 * pages  # malloc as it is, before and behind
    assert nested < 0.01 * pages and held < 0.01 * pages
    assert reserved < 8 << 20  # address space, not memory
    assert kept > 0.9 * (300 << 20) and left < 30 << 20


@needs_glibc
@pytest.mark.parametrize("one_heap", [False, True])
def test_threads_that_start_later_find_it_too(one_heap: bool) -> None:
    """A thread's blocks of 300 MB lie in the main heap with `one_heap`, else each is mapped."""
    code = f"""
hold_memory(one_heap={one_heap})
found = []
thread = threading.Thread(target=lambda: (step(), found.append(faults_of_a_step())))
thread.start(); thread.join()
print(found[0])
release_memory()
print(faults_of_a_step())
"""
    held, released = run(code)
    pages = (300 << 20) // os.sysconf("SC_PAGE_SIZE")
    assert held < 0.01 * pages if one_heap else held > 0.9 * pages
    assert released > 0.9 * pages


@needs_glibc
def test_what_a_compilation_leaves_goes_back_to_the_kernel() -> None:
    """400 free blocks of 256 KiB between blocks in use, and what a step uses behind them."""
    code = """
hold_memory()
blocks = [libc.malloc(1 << 14 if i % 2 else 1 << 18) for i in range(800)]
for i, block in enumerate(blocks): ctypes.memset(block, 1, 1 << 14 if i % 2 else 1 << 18)
for block in blocks[::2]: libc.free(block)
before = resident()
trim()
print(before - resident())
step()
print(faults_of_a_step())
assert all(ctypes.string_at(block, 4) == bytes([1] * 4) for block in blocks[1::2])
"""
    given_back, faults = run(code)
    assert given_back > 0.8 * (400 << 18)
    assert faults < 1000


@needs_glibc
def test_a_long_compilation_is_followed_by_a_trim() -> None:
    code = """
import jax
hold_memory(); hold_memory()
kept, blocks = [], []
for _ in range(400):
    blocks.append(libc.malloc(1 << 18)); kept.append(libc.malloc(1 << 14))
    ctypes.memset(blocks[-1], 1, 1 << 18)
for block in blocks: libc.free(block)
event = "/jax/core/compile/backend_compile_duration"
before = resident()
jax.monitoring.record_event_duration_secs(event, 0.1)
print(before - resident())
jax.monitoring.record_event_duration_secs(event, 10.0)
print(before - resident())
"""
    short, long = run(code)
    assert short < 10 << 20 and long > 0.8 * (400 << 18)


@needs_glibc
@pytest.mark.parametrize(
    "environment",
    [
        {"BONEAGE_JAX_HOLD_MEMORY": "0"},
        {"GLIBC_TUNABLES": "glibc.malloc.arena_max=3"},
        {"MALLOC_TRIM_THRESHOLD_": "100000000"},
    ],
)
def test_the_switch_and_settings_of_the_user_leave_malloc_alone(environment) -> None:
    (faults,) = run("hold_memory()\nstep()\nprint(faults_of_a_step())", **environment)
    assert faults > 0.9 * (300 << 20) / os.sysconf("SC_PAGE_SIZE")


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for answer in ("musl 1.2", None):
        monkeypatch.setattr(os, "confstr", lambda name, answer=answer: answer)
        assert _glibc() is None
    monkeypatch.delattr(os, "confstr")
    assert _glibc() is None

"""Keeps the memory of large host arrays in the process, on huge pages.

XLA's CPU backend takes the intermediate results of a step from malloc as one block, and frees it at
the end of the step. By default glibc maps such a block and gives it back to the kernel, so that
every step faults in each of its pages of 4 KiB again: 470,000 page faults per step of
EfficientNet-B4 on 8 images of 256 px. While `hold_memory` is in force, the block comes from
malloc's heap, stays there, and lies on huge pages where the kernel grants them
(transparent_hugepage set to madvise or always). docs/benchmark.md says what this is worth.

A compilation leaves 1.5 GB of free blocks in the process; they are returned to the kernel before
the compiled program runs.
"""

import contextlib
import ctypes
import functools
import os
from collections.abc import Iterator
from typing import Any

# For `gc.set_threshold`: importing and tracing create many objects and few cycles, and with the
# default thresholds the collector takes a quarter of the time of tracing a network.
COLLECTIONS = (50_000, 20, 50)
SWITCH = "BONEAGE_JAX_HOLD_MEMORY"  # environment variable: 0 leaves malloc as it is

# Keys of mallopt(3), and their values by default.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = (-1, 128 << 10), (-4, 65536), (-8, 0)
_HUGEPAGE = 14  # MADV_HUGEPAGE on Linux
_HUGE = 2 << 20  # bytes of a huge page on x86-64; smaller ones on other processors divide it
_RESERVED = 4 << 30  # bytes of address space; memory is only what a step has touched
_COMPILED = "/jax/core/compile/backend_compile_duration"  # event of jax.monitoring
_LONG = 1.0  # compilation time in seconds above which much is left behind

# Environment variables of malloc that say where large blocks come from, see mallopt(3).
_VARIABLES = tuple(
    f"MALLOC_{key}_" for key in ("MMAP_MAX", "MMAP_THRESHOLD", "TRIM_THRESHOLD", "TOP_PAD")
)

_held: list[Any] = []  # the C library while memory is held


@contextlib.contextmanager
def held_memory() -> Iterator[None]:
    """Context manager: `hold_memory`, and at its end `release_memory` unless it was held before."""
    before = bool(_held)
    hold_memory()
    try:
        yield
    finally:
        if not before:
            release_memory()


def hold_memory(*, one_heap: bool = False) -> None:
    """Keeps freed memory in this process, where the next step finds it; call before the first step.

    The process then holds the peak of its memory until `release_memory`. Does nothing if memory is
    held already, without glibc, with settings of malloc in the environment (GLIBC_TUNABLES,
    MALLOC_MMAP_MAX_, ...), and with BONEAGE_JAX_HOLD_MEMORY=0.

    Only arrays that the main thread allocates profit: glibc maps large blocks of other threads
    whatever its settings. See `boneage_jax.runtime.process_setup`. With `one_heap`, threads that
    start later allocate from the main thread's heap instead of one of their own. For those that
    decode images: 128 radiographs take 8 % less processor time, and 588 instead of 826 MiB.
    """
    if _held or os.environ.get(SWITCH) == "0" or _is_tuned() or not (libc := _glibc()):
        return
    wanted = [(_MMAP_MAX[0], 0), (_TRIM_THRESHOLD[0], -1)]
    for key, value in [*wanted, (_ARENA_MAX[0], 1)] if one_heap else wanted:
        if not libc.mallopt(key, value):
            return
    _held.append(libc)
    _reserve(libc)
    _listen()


def release_memory() -> None:
    """Returns what `hold_memory` holds to the kernel, and malloc to its settings by default."""
    while _held:
        libc = _held.pop()
        for setting in (_MMAP_MAX, _TRIM_THRESHOLD, _ARENA_MAX):
            libc.mallopt(*setting)
        libc.malloc_trim(0)


def trim() -> None:
    """Returns free memory to the kernel, if memory is held; takes 0.1 to 0.5 s."""
    for libc in _held:
        libc.malloc_trim(0)
        _reserve(libc)


def _reserve(libc: Any) -> None:
    """Makes the end of the heap so long that a step fits in, and asks for huge pages there.

    The memory itself is only taken when it is first written to.
    """
    block = libc.malloc(_RESERVED)
    if not block:  # a limit on address space
        return
    first = -(-block // _HUGE) * _HUGE
    libc.madvise(first, (block + _RESERVED - first) // _HUGE * _HUGE, _HUGEPAGE)
    libc.free(block)


@functools.cache
def _listen() -> None:
    """Trims after each long compilation; JAX cannot take a listener back, so there is one."""
    import jax

    def notice(event: str, duration_secs: float, **_: str | int) -> None:
        if event == _COMPILED and duration_secs > _LONG:
            trim()

    jax.monitoring.register_event_duration_secs_listener(notice)


def _is_tuned() -> bool:
    """Returns whether the user has settings of malloc in the environment."""
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    return "glibc.malloc." in tunables or any(name in os.environ for name in _VARIABLES)


def _glibc() -> Any:
    """Returns the C library, typed for the calls above; None if it is not glibc."""
    try:
        if not (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc"):
            return None
    except (AttributeError, ValueError, OSError):
        return None
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return libc

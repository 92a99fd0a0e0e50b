"""Keeps large host arrays on huge pages, and their memory in the process.

XLA's CPU backend allocates a step's intermediate results with malloc and frees them at the end of
the step. By default glibc returns such blocks to the kernel, and the next step faults in every page
of 4 KiB again: about 200,000 page faults per step of EfficientNet-Lite0 on 16 images of 192 px.
With huge pages, one arena and no memory returned, that step took 409 to 419 ms instead of 645 to
650 (medians of 25 steps, two alternating runs each, 2 cores of an AMD EPYC).

After a compilation one more measure is needed, see `close_holes`. docs/benchmark.md has the gain of
each.
"""

import ctypes
import functools
import os
import sys
from collections.abc import Callable

TUNABLES = ":".join(
    f"glibc.malloc.{key}={value}"
    for key, value in {
        "hugetlb": 1,  # madvise(MADV_HUGEPAGE) on malloc's memory; glibc 2.35 or newer
        "mmap_max": 0,  # large blocks come from the heap, not from mmap
        "trim_threshold": 1 << 40,  # and the heap is never trimmed
        "arena_max": 1,  # other arenas are too small for large blocks
    }.items()
)

_LARGEST, _SMALLEST = 1 << 30, 1 << 12  # size of a hole in bytes
_COMPILED = "/jax/core/compile/backend_compile_duration"  # event of jax.monitoring
_LONG = 1.0  # compilation time in seconds above which many holes are left
_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_DONTNEED = 4  # MADV_DONTNEED on Linux


def use_huge_pages() -> None:
    """Restarts this process with glibc settings for large arrays; call before JAX is loaded.

    malloc reads its settings when a process starts, hence the exec: same process id, same
    arguments. Does nothing if GLIBC_TUNABLES is set (so it restarts only once, and users can
    override it), without glibc 2.35 or newer, or if JAX is loaded already, whose memory would be
    lost.
    """
    if "GLIBC_TUNABLES" in os.environ or "jax" in sys.modules or _glibc() < (2, 35):
        return
    os.environ["GLIBC_TUNABLES"] = TUNABLES
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    except OSError:
        return  # go on without, a little slower


def close_holes() -> int:
    """Releases free heap blocks fragmented by XLA compilation. Call once after each compilation.

    LLVM leaves some 100,000 free blocks, and glibc keeps the larger ones in lists sorted by size,
    which it walks at each request of more than a KiB, while all temporary arrays of a step wait
    for the same arena. So this function allocates these blocks, returns their pages to the kernel,
    and never frees them. Takes about 50 ms.

    Returns:
      Bytes taken out of the heap; 0 if this process does not run with `TUNABLES`.
    """
    if os.environ.get("GLIBC_TUNABLES") != TUNABLES or _glibc() < (2, 35):
        return 0
    libc = ctypes.CDLL(None)
    libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
    libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.mallinfo2.restype = _MallInfo
    info = libc.mallinfo2()
    holes = info.fordblks - info.keepcost  # free bytes, except at the end of the heap
    # Larger than any hole, so it is placed at the end: a block below it fills a hole.
    end = libc.malloc(_LARGEST)
    if not end:
        return 0
    libc.free(end)
    taken, size = 0, _LARGEST // 2
    while size >= _SMALLEST:
        block = libc.malloc(size) if taken + size <= holes else None
        if block and block < end:
            first = -(-block // _PAGE) * _PAGE
            libc.madvise(first, (block + size - first) // _PAGE * _PAGE, _DONTNEED)
            taken += size
        else:
            libc.free(block)
            size = size * 4 // 5
    return taken


@functools.cache
def tidy_heap(release: Callable[[], object] | None = None, longer_than: float = _LONG) -> None:
    """Calls `close_holes` after each long compilation, before the compiled program runs.

    Without it, a process that has compiled its step takes 1.25 to 1.5 times as long per step as
    one that found it in the compilation cache.

    Args:
      release: called instead of `close_holes` if given.
      longer_than: compilation time in seconds above which many holes are left.
    """
    import jax

    def notice(event: str, duration_secs: float, **_: str | int) -> None:
        if event == _COMPILED and duration_secs > longer_than:
            (release or close_holes)()

    jax.monitoring.register_event_duration_secs_listener(notice)


class _MallInfo(ctypes.Structure):
    """struct mallinfo2 of malloc.h."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


def _glibc() -> tuple[int, ...]:
    """Returns the version of glibc, (0,) for another C library."""
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
        return tuple(int(part) for part in version.split(".")[:2]) if name == "glibc" else (0,)
    except (AttributeError, ValueError, OSError):
        return (0,)

"""Large arrays of the host on huge pages, that stay with the process.

XLA's CPU backend takes the memory of a step's intermediate results from malloc and gives it back at
the end of the step. By default glibc hands such blocks back to the kernel, and the next step pays
for every page of 4 KiB again: about 200,000 page faults a step of EfficientNet-Lite0 on 16 images
of 192 px. With huge pages, one arena and nothing handed back that step ran in 409 to 419 ms instead
of 645 to 650 (medians of 25 steps, two runs each in alternation, 2 cores of an AMD EPYC).

One thing is then left to do after a compilation, see `close_holes`. docs/benchmark.md has what
both are worth.
"""

import ctypes
import functools
import os
import sys
from collections.abc import Callable

TUNABLES = ":".join(
    f"glibc.malloc.{key}={value}"
    for key, value in {
        "hugetlb": 1,  # madvise(MADV_HUGEPAGE) on what malloc takes; of glibc 2.35 and newer
        "mmap_max": 0,  # large blocks from the heap, not from maps of their own
        "trim_threshold": 1 << 40,  # and the heap is not given back
        "arena_max": 1,  # other arenas are too small for large blocks
    }.items()
)

_LARGEST, _SMALLEST = 1 << 30, 1 << 12  # bytes of a hole
_COMPILED = "/jax/core/compile/backend_compile_duration"  # of jax.monitoring
_LONG = 1.0  # seconds of a compilation that leaves many holes
_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_DONTNEED = 4  # MADV_DONTNEED of Linux


def use_huge_pages() -> None:
    """Restarts this process with glibc settings for large arrays; call before JAX is loaded.

    malloc reads its settings when a process begins, hence the exec: same process id, same
    arguments. Nothing happens where GLIBC_TUNABLES is set (so it happens once, and a user can
    choose), outside glibc 2.35 or newer, or once JAX is loaded, whose memory would be lost.
    """
    if "GLIBC_TUNABLES" in os.environ or "jax" in sys.modules or _glibc() < (2, 35):
        return
    os.environ["GLIBC_TUNABLES"] = TUNABLES
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    except OSError:
        return  # as it is, a little slower


def close_holes() -> int:
    """Releases free heap blocks fragmented by XLA compilation. Call once after each compilation.

    LLVM leaves some 100,000 free blocks, and glibc keeps the larger ones in lists sorted by
    size, which it walks at each request of more than a KiB: with all of a step's temporary arrays
    waiting for the same arena. So these blocks are taken, their pages given back to the kernel,
    and never freed. It takes about 50 ms.

    Returns:
      Bytes taken out; 0 where this process does not run with `TUNABLES`.
    """
    if os.environ.get("GLIBC_TUNABLES") != TUNABLES or _glibc() < (2, 35):
        return 0
    libc = ctypes.CDLL(None)
    libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
    libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.mallinfo2.restype = _MallInfo
    info = libc.mallinfo2()
    holes = info.fordblks - info.keepcost  # free bytes, but for the end of the heap
    # Larger than any hole, so it lies at the end: what lies below is in a hole.
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

    Without it a process that has compiled its step takes 1.25 to 1.5 times as long for it as one
    that found it in the compilation cache.

    Args:
      release: called then, `close_holes` where None.
      longer_than: seconds of a compilation that leaves many holes.
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
    """The version of the C library, (0,) where it is another one."""
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
        return tuple(int(part) for part in version.split(".")[:2]) if name == "glibc" else (0,)
    except (AttributeError, ValueError, OSError):
        return (0,)

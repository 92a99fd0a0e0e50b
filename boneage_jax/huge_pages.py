"""Large arrays of the host on huge pages, that stay with the process.

XLA's CPU backend takes the memory of a step's intermediate results from malloc and gives it back at
the end of the step. By default glibc hands such blocks back to the kernel, and the next step pays
for every page of 4 KiB again: about 200,000 page faults a step of EfficientNet-Lite0 on 16 images
of 192 px. With huge pages, one arena and nothing handed back that step ran in 409 to 419 ms instead
of 645 to 650 (medians of 25 steps, two runs each in alternation, 2 cores of an AMD EPYC).
"""

import os
import sys

TUNABLES = ":".join(
    f"glibc.malloc.{key}={value}"
    for key, value in {
        "hugetlb": 1,  # madvise(MADV_HUGEPAGE) on what malloc takes; of glibc 2.35 and newer
        "mmap_max": 0,  # large blocks from the heap, not from maps of their own
        "trim_threshold": 1 << 40,  # and the heap is not given back
        "arena_max": 1,  # other arenas are too small for large blocks
    }.items()
)


def use_huge_pages() -> None:
    """Starts this process anew with glibc told so; a door calls it before anything else.

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


def _glibc() -> tuple[int, ...]:
    """The version of the C library, (0,) where it is another one."""
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
        return tuple(int(part) for part in version.split(".")[:2]) if name == "glibc" else (0,)
    except (AttributeError, ValueError, OSError):
        return (0,)

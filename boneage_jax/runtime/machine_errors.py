"""What a machine lacks, in one line: devices that JAX was told to use, memory, open files.

Importing this file does not load JAX.
"""

import errno
import os
import re

from boneage_jax.errors import InputError

# Messages of XLA's allocators, CUDA and C++. Their exceptions are RuntimeErrors of JAX.
_OUT_OF_MEMORY = re.compile(r"RESOURCE_EXHAUSTED|out of memory|std::bad_alloc", re.IGNORECASE)
_JAX_FLAG = re.compile(r'Invalid value "?.*"? for JAX flag (\w+)')
_REFUSALS = {
    errno.EACCES: "make it accessible, or name another",
    errno.EPERM: "make it accessible, or name another",
    errno.EROFS: "name a writable one",
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "make room on that disk",
    errno.EFBIG: "raise ulimit -f, or name another disk",
    errno.EIO: "the disk fails; name another",
    errno.ESTALE: "the network file system lost it; start again",
    errno.ENAMETOOLONG: "name a shorter one",
    errno.ELOOP: "its links lead in a circle",
    errno.EMFILE: "raise ulimit -n",
    errno.ENFILE: "the machine has too many open files",
}
_LONGEST = 300  # characters quoted from another library's message


def check_devices() -> None:
    """Initialises the devices of JAX; with several processes this waits for all of them.

    Raises:
      InputError: JAX_PLATFORMS names a platform that JAX does not know or cannot use.
    """
    import jax

    chosen = os.environ.get("JAX_PLATFORMS")
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # a bare assert where a plugin is missing
        if not chosen or jax.distributed.is_initialized():
            raise
        reason = _first_words(error) or f"no plugin of JAX for {chosen} is installed"
        raise InputError(
            f"JAX_PLATFORMS={chosen}: {reason}; unset it, or install what it needs "
            "(pip install 'boneage_jax[cuda]' or 'boneage_jax[tpu]')"
        ) from error


def machine_error(error: Exception) -> str:
    """Returns one line with a remedy for an error that the machine or its settings cause.

    Args:
      error: any error that nothing caught.

    Returns:
      "" for all others, which are faults of the code.
    """
    if isinstance(error, OSError):
        remedy = _REFUSALS.get(error.errno or 0)
        file = "" if error.filename is None else f"{error.filename}: "
        return f"{file}{error.strerror}; {remedy}" if remedy else ""
    if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(str(error)):
        return (
            f"out of memory ({_first_words(error) or 'of this machine'}); take fewer images at a "
            "time (config.batch_size, config.eval_batch_size), config.accumulate or "
            "config.model.remat"
        )
    flag = _JAX_FLAG.search(str(error))
    return f"{_first_words(error)}; change {flag[1].upper()} in the environment" if flag else ""


def _first_words(error: BaseException) -> str:
    return " ".join(str(error).split(" (set JAX_PLATFORMS")[0].split())[:_LONGEST]

"""Compiles and loads the package's C++ code, where there is a compiler."""

import contextlib
import ctypes
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import jax

import boneage_jax.models
from boneage_jax.models import native
from boneage_jax.runtime.cache_folder import cache_folder
from boneage_jax.runtime.compile_cache import processor
from boneage_jax.runtime.machine import cpuinfo

SWITCH = "BONEAGE_JAX_NATIVE"  # environment variable: 0 leaves everything to XLA

_SOURCES = Path(boneage_jax.models.__file__).with_name("native_code")
_FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC")
_PATIENCE = 120  # seconds; it takes six


def load_native_code() -> bool:
    """Loads the compiled code of train steps, compiling it first if need be.

    Without a compiler (CXX, c++, g++ or clang++), without a place to keep the library, on another
    system than Linux, or with BONEAGE_JAX_NATIVE=0, train steps use XLA's loops instead.

    Returns:
      Whether train steps use native code.
    """
    if native.is_enabled():
        return True
    if os.environ.get(SWITCH) == "0" or not native.is_of_use():
        return False
    for _ in range(2):  # once more if the library is damaged
        library = build_library()
        if library is None:
            return False
        try:
            native.register(ctypes.CDLL(str(library)))
        except OSError:
            with contextlib.suppress(OSError):
                library.unlink()
        except (AttributeError, RuntimeError):
            return False
        else:
            return True
    return False


def build_library() -> Path | None:
    """Returns the compiled library in the cache folder, compiling it if it is not there.

    Its name is made of all that it depends on: source, compiler, processor and jaxlib.
    """
    cache, compiler = cache_folder(), _compiler()
    known = {"flags", "Features"} & cpuinfo().keys()  # else a library might be of another processor
    if sys.platform != "linux" or not known or cache is None or compiler is None:
        return None
    sources = map(str, sorted(_SOURCES.glob("*.cc")))
    command = [compiler, *_FLAGS, "-isystem", jax.ffi.include_dir(), *sources]
    try:
        library = cache / "native" / f"steps-{_key(command)}.so"
        if not library.exists():
            _compile(command, library)
        ours = all(_only_we_write(path) for path in (library.parent, library))
    except (OSError, ImportError, subprocess.SubprocessError):
        return None
    return library if ours else None


def _only_we_write(path: Path) -> bool:
    """Returns whether no other user could have put code there."""
    found = path.stat()
    return found.st_uid == os.getuid() and not found.st_mode & 0o022


def _compiler() -> str | None:
    names = filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++"))
    return next(filter(None, map(shutil.which, names)), None)


def _key(command: list[str]) -> str:
    version = subprocess.run(
        [command[0], "--version"], capture_output=True, check=True, timeout=_PATIENCE
    )
    texts = (repr(command), processor(), importlib.metadata.version("jaxlib"))
    parts = [version.stdout, *(text.encode() for text in texts)]
    parts += [path.read_bytes() for path in sorted(_SOURCES.iterdir()) if path.is_file()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _compile(command: list[str], library: Path) -> None:
    """Compiles under another name: several processes may do so at the same time."""
    library.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        subprocess.run(
            [*command, "-o", str(made)], capture_output=True, check=True, timeout=_PATIENCE
        )
        made.chmod(0o700)  # whatever the umask
        made.replace(library)

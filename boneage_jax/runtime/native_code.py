"""Compiles and loads the package's C++ code, where there is a compiler."""

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
from boneage_jax.models import depthwise_native
from boneage_jax.runtime.cache_folder import cache_folder
from boneage_jax.runtime.compile_cache import processor

SWITCH = "BONEAGE_JAX_NATIVE"  # environment variable: 0 leaves everything to XLA

_SOURCE = Path(boneage_jax.models.__file__).with_name("depthwise.cc")
_FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC")
_PATIENCE = 120  # seconds; it takes four


def load_native_code() -> bool:
    """Loads the depthwise convolutions of train steps, compiling them first if need be.

    Without a compiler (CXX, c++, g++ or clang++), without a place to keep the library, on another
    system than Linux, or with BONEAGE_JAX_NATIVE=0, train steps use XLA's loops instead.

    Returns:
      Whether train steps use native code.
    """
    if depthwise_native.is_enabled():
        return True
    if os.environ.get(SWITCH) == "0" or not depthwise_native.is_of_use():
        return False
    library = build_library()
    if library is None:
        return False
    try:
        depthwise_native.register(ctypes.CDLL(str(library)))
    except (OSError, AttributeError):
        return False  # of another machine, or damaged
    return True


def build_library() -> Path | None:
    """Returns the compiled library in the cache folder, compiling it if it is not there.

    Its name is made of all that it depends on: source, compiler, processor and jaxlib.
    """
    cache, compiler = cache_folder(), _compiler()
    if sys.platform != "linux" or cache is None or compiler is None:
        return None
    command = [compiler, *_FLAGS, "-isystem", jax.ffi.include_dir(), str(_SOURCE)]
    try:
        library = cache / "native" / f"depthwise-{_key(command)}.so"
        if not library.exists():
            _compile(command, library)
    except (OSError, subprocess.SubprocessError):
        return None
    return library


def _compiler() -> str | None:
    names = filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++"))
    return next(filter(None, map(shutil.which, names)), None)


def _key(command: list[str]) -> str:
    version = subprocess.run(
        [command[0], "--version"], capture_output=True, check=True, timeout=_PATIENCE
    )
    parts = (_SOURCE.read_bytes(), repr(command).encode(), version.stdout, processor().encode())
    headers = importlib.metadata.version("jaxlib").encode()
    return hashlib.sha256(b"\0".join((*parts, headers))).hexdigest()[:16]


def _compile(command: list[str], library: Path) -> None:
    """Compiles under another name: several processes may do so at the same time."""
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        subprocess.run(
            [*command, "-o", str(made)], capture_output=True, check=True, timeout=_PATIENCE
        )
        made.replace(library)

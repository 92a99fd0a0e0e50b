"""Keeps traced programs between starts, beside the compiled ones of JAX's compilation cache.

JAX looks a compiled program up by its lowered text, so that every start traces and lowers the
network first: two seconds of Python for EfficientNet-Lite0, and as much again for the shapes of its
variables. A traced program, serialized by `jax.export`, holds both. It is plain data: reading one
runs no code.
"""

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax import export

import boneage_jax
from boneage_jax.runtime.compile_cache import processor
from boneage_jax.runtime.machine import versions

_FOLDER = "traced"


def program_key(description: Mapping[str, Any]) -> str:
    """Returns the name of a program: a hash of all that its trace depends on.

    That is `description`, JSON values, with the sources of this package, the versions of the
    packages below it, JAX's settings, its platform and the processor.
    """
    settings = {name: repr(value) for name, value in jax.config.values.items()}
    parts = [description, _sources(), versions(), settings, jax.default_backend(), processor()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def load_program(key: str) -> export.Exported | None:
    """Reads a program; None if there is none, or one that cannot be read.

    Args:
      key: see `program_key`.
    """
    folder = _folder()
    if folder is None:
        return None
    try:
        saved = (folder / key).read_bytes()
        digest, program = saved[:32], saved[32:]
        if hashlib.sha256(program).digest() != digest:  # cut short: the parser would crash
            return None
        return export.deserialize(bytearray(program))
    except Exception:  # a format of another version of jax is as good as none
        return None


def keep_program(key: str, function: Callable[..., Any], *shapes: Any) -> export.Exported | None:
    """Traces a function, and saves its program for later starts where that is possible.

    Args:
      key: see `program_key`.
      function: function of arrays without side effects.
      *shapes: its arguments, `jax.ShapeDtypeStruct` in place of arrays.

    Returns:
      The program; None if programs are not kept on this machine, or `jax.export` cannot take this
      one, e.g. for a kernel of the platform without a promise to stay as it is.
    """
    folder = _folder()
    if folder is None:
        return None
    try:
        traced = export.export(jax.jit(function))(*shapes)
        program = bytes(traced.serialize())
    except (ValueError, NotImplementedError):  # what is wrong with the function itself, a call says
        return None
    part = folder / f"{key}.{os.getpid()}"  # two starts at once: the last one stays
    with contextlib.suppress(OSError):  # a full disk: the next start traces again
        try:
            folder.mkdir(exist_ok=True)
            part.write_bytes(hashlib.sha256(program).digest() + program)
            part.replace(folder / key)
        finally:
            part.unlink(missing_ok=True)
    return traced


def _folder() -> Path | None:
    """The folder for programs, inside that of JAX's cache; None without a local one."""
    compiled = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if not compiled or "://" in compiled or not Path(compiled).is_dir():
        return None
    return Path(compiled) / _FOLDER


@functools.cache
def _sources() -> str:
    """Hash of the Python files of this package, 20 ms."""
    found = hashlib.sha256()
    root = Path(boneage_jax.__file__).parent
    for path in sorted(root.rglob("*.py")):
        found.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return found.hexdigest()

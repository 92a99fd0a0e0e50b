"""Compiles and loads the package's C++ code, where there is a compiler."""

import contextlib
import ctypes
import hashlib
import importlib.metadata
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax

import boneage_jax.models
from boneage_jax.models import native
from boneage_jax.runtime.cache_folder import cache_folder
from boneage_jax.runtime.compile_cache import processor
from boneage_jax.runtime.machine import cpuinfo

SWITCH = "BONEAGE_JAX_NATIVE"  # environment variable: 0 leaves everything to XLA

_SOURCES = Path(boneage_jax.models.__file__).with_name("native_code")
_FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC")
_PATIENCE = 120  # seconds; it takes ten


@contextlib.contextmanager
def native_code_ahead() -> Iterator[None]:
    """Context manager: has compiled code loaded when the first train step asks for it.

    If it is not compiled yet, compilers begin at once, in the background. Nested ones change
    nothing. When compiled code is not used, see `load_native_code`.
    """
    if native.is_pending() or native.is_loaded() or not _is_wanted():
        yield
        return
    build = _Build.begin()
    native.load_when_needed(lambda: _load(build))
    try:
        yield
    finally:
        native.load_when_needed(None)
        if build is not None:
            build.abandon()


def load_native_code() -> bool:
    """Loads the compiled code of train steps, compiling it first if need be.

    Without a compiler (CXX, c++, g++ or clang++), without a place to keep the library, on another
    system than Linux, or with BONEAGE_JAX_NATIVE=0, train steps use XLA's loops instead.

    Returns:
      Whether train steps use native code.
    """
    return native.is_enabled() or (_is_wanted() and _load(_Build.begin()))


def _is_wanted() -> bool:
    return os.environ.get(SWITCH) != "0" and native.is_of_use()


def _load(build: "_Build | None") -> bool:
    for again in (False, True):  # once more if the library is damaged
        if again:
            build = _Build.begin()
        library = build and build.finish()
        if not library:
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
    build = _Build.begin()
    return build.finish() if build else None


class _Build:
    """The library, being made: two processes compile its sources, another links what they made.

    Args:
      command: the compiler with its flags.
      library: the file to make.
    """

    def __init__(self, command: list[str], library: Path):
        self._command, self._library = command, library
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._objects: dict[str, subprocess.Popen[bytes]] = {}

    @classmethod
    def begin(cls) -> "_Build | None":
        """Starts the compilers, unless the library is there; None where it cannot be made."""
        cache, compiler = cache_folder(), _compiler()
        # Else a library might be of another processor.
        known = {"flags", "Features"} & cpuinfo().keys()
        if sys.platform != "linux" or not known or cache is None or compiler is None:
            return None
        command = [compiler, *_FLAGS, "-isystem", jax.ffi.include_dir()]
        try:
            build = cls(command, cache / "native" / f"steps-{_key(command)}.so")
            if not build._library.exists():
                build._start()
        except (OSError, ImportError, subprocess.SubprocessError):
            return None
        return build

    def _start(self) -> None:
        # In a folder of its own: several processes may do so at the same time.
        self._library.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = tempfile.TemporaryDirectory(dir=self._library.parent)
        try:
            for source, before in _units():
                made = str(Path(self._folder.name, source.stem + ".o"))
                joined = [part for path in before for part in ("-include", str(path))]
                self._objects[made] = subprocess.Popen(
                    [*self._command, *joined, "-c", str(source), "-o", made],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    process_group=0,  # which Ctrl-C does not reach
                )
        except BaseException:
            self.abandon()
            raise

    def finish(self) -> Path | None:
        """Waits for the library and returns it, None if it cannot be made or trusted."""
        try:
            if self._folder is not None:
                self._link(Path(self._folder.name, self._library.name))
            ours = all(_only_we_write(path) for path in (self._library.parent, self._library))
        except (OSError, subprocess.SubprocessError):
            return None
        finally:
            self.abandon()
        return self._library if ours else None

    def _link(self, made: Path) -> None:
        for process in self._objects.values():
            if process.wait(_PATIENCE):
                raise subprocess.CalledProcessError(process.returncode, process.args)
        subprocess.run(
            [*self._command, "-shared", *self._objects, "-o", str(made)],
            capture_output=True,
            check=True,
            timeout=_PATIENCE,
        )
        made.chmod(0o700)  # whatever the umask
        made.replace(self._library)

    def abandon(self) -> None:
        """Ends the compilers, if they still work, and removes what they made."""
        for process in self._objects.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # a compiler starts others
                process.wait()
        self._objects.clear()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


def _units() -> list[tuple[Path, list[Path]]]:
    """Returns sources to compile side by side, each with those that are read before it.

    The largest is one; the others go together, since each alone spends two seconds on the headers
    of `jax.ffi`.
    """
    *small, large = sorted(_SOURCES.glob("*.cc"), key=lambda path: (path.stat().st_size, path.name))
    return [(large, []), (small[-1], small[:-1])]


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

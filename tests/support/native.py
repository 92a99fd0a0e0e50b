"""The compiled depthwise convolution, for tests that call it directly."""

import ctypes
import os
from unittest import mock

import pytest
from filelock import FileLock

from boneage_jax.models import native
from boneage_jax.runtime.native_code import build_library


@pytest.fixture(scope="session")
def native_library(worker_folder):
    """Path of the library; registers it with JAX. Skips where there is no compiler."""
    cache = mock.patch.dict(os.environ, {"XDG_CACHE_HOME": str(worker_folder / "native")})
    with FileLock(worker_folder / "native.lock"), cache:
        library = build_library()
    if library is None:
        pytest.skip("no C++ compiler")
    native.register(ctypes.CDLL(str(library)))
    return library

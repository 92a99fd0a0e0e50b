"""The compiled depthwise convolution, for tests that call it directly."""

import ctypes
import os
from unittest import mock

import pytest

from boneage_jax.models import native
from boneage_jax.runtime.native_code import build_library


@pytest.fixture(scope="session")
def native_library(tmp_path_factory):
    """Path of the library; registers it with JAX. Skips where there is no compiler."""
    cache = tmp_path_factory.mktemp("native")
    with mock.patch.dict(os.environ, {"XDG_CACHE_HOME": str(cache)}):
        library = build_library()
    if library is None:
        pytest.skip("no C++ compiler")
    native.register(ctypes.CDLL(str(library)))
    return library

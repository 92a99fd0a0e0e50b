"""What all tests share: simulated devices, and a network small enough to compile in a second."""

import atexit
import ctypes
import gc
import os
import shutil
import tempfile

from tests.support.compiling import xla_flags

# Before jax is imported anywhere: four CPU devices, so that parallel steps can be compared.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {xla_flags(devices=4)}"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["KERAS_BACKEND"] = "jax"
# Processes that tests start do not compile C++ each; tests of that code ask for it.
os.environ["BONEAGE_JAX_NATIVE"] = "0"
# Programs that take 0.1 s and more are compiled once per session, by whichever test comes first.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="boneage_jax_compiled_")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import jax
import pytest

from boneage_jax.runtime.cpu_memory import COLLECTIONS
from tests.support.chromium import NO_BROWSER

# As commands do, see `boneage_jax.cli.run_door`: tracing allocates much and leaves few cycles, and
# the collector took a quarter of the time of tests that trace whole networks.
gc.set_threshold(*COLLECTIONS)

# Fixtures that several files of tests share.
pytest_plugins = [
    f"tests.support.{name}"
    for name in ("unet_run", "weight_files", "clouds", "tiny_run", "native", "published_runs")
]


# Files of tests by their time: the longest first, so that two processes end at the same time.
_LONGEST = (
    *("runtime/test_processes", "benchmarking/test_benchmark", "training/test_end_to_end"),
    *("training/test_pretraining", "training/test_phases", "training/test_nonfinite"),
    *("inference/test_background_removal", "training/test_finetune", "storage/test_bucket"),
    *("training/test_rsna_preset", "training/test_restart", "training/test_step"),
)


def pytest_configure(config: pytest.Config) -> None:
    """Lets pytest-xdist keep the order below; it would start with the files of most tests."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {f"{name}.py": rank for rank, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: ranks.get("/".join(item.path.parts[-2:]), len(ranks)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says before the last line which part was not tested, which a count of skips hides."""
    skipped = terminalreporter.stats.get("skipped", [])
    count = sum(NO_BROWSER in str(report.longrepr) for report in skipped)
    if count:
        terminalreporter.write_line(f"{count} BROWSER TESTS WERE SKIPPED: {NO_BROWSER}", red=True)


@pytest.fixture(autouse=True, scope="module")
def free_compiled_programs():
    """Keeps the suite below 3 GB: JAX holds each compiled program for the life of the process."""
    yield
    jax.clear_caches()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture
def one_device() -> list[jax.Device]:
    return jax.devices()[:1]

"""What a training sets up in a process: where steps run, and that it is as before at the end."""

import gc
import os
import subprocess
import sys

import pytest

from boneage_jax.runtime.cpu_memory import COLLECTIONS, _glibc
from boneage_jax.runtime.process_setup import prepared_process


def test_garbage_is_collected_as_before_at_the_end() -> None:
    before, flags = gc.get_threshold(), os.environ.get("XLA_FLAGS")
    try:
        gc.set_threshold(700, 10, 100)
        with prepared_process():
            assert gc.get_threshold() == (COLLECTIONS[0], COLLECTIONS[1], 100)  # the rarer of both
        assert gc.get_threshold() == (700, 10, 100)
        with pytest.raises(KeyError), prepared_process():
            raise KeyError
        assert gc.get_threshold() == (700, 10, 100)
    finally:
        gc.set_threshold(*before)
    assert os.environ.get("XLA_FLAGS") == flags


# Temporaries of 200 MB; while a program runs, another thread must get its turn.
_STEP = """
import os, resource, threading, time
import jax, jax.numpy as jnp
from boneage_jax.runtime.process_setup import prepared_process

def fn(x):
    y = jnp.sin(x)[:, None] * jnp.cos(x)
    return jnp.sort(y, axis=1).sum(0)

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

turns, stop = [0], threading.Event()
def count():
    while not stop.is_set():
        turns[0] += 1
        time.sleep(0.001)

with prepared_process():
    step, x = jax.jit(fn), jnp.ones(5000)
    step(x).block_until_ready()
    before = faults()
    thread = threading.Thread(target=count)
    thread.start()
    first = turns[0]
    out = step(x)
    print(turns[0] - first)
    out.block_until_ready()
    stop.set(); thread.join()
    print(faults() - before)
print("XLA_FLAGS" in os.environ, jax.device_count())
"""


@pytest.mark.skipif(_glibc() is None, reason="needs glibc")
def test_a_step_runs_on_the_thread_that_calls_it_and_lets_others_run() -> None:
    names = ("XLA_FLAGS", "GLIBC_TUNABLES")
    kept = {key: value for key, value in os.environ.items() if key not in names}
    done = subprocess.run(
        [sys.executable, "-c", _STEP], env=kept, capture_output=True, text=True, check=True
    )
    turns, faults, flags, devices = done.stdout.split()
    assert int(turns) > 10  # the call returned behind the program, and the other thread ran
    assert int(faults) < 5000  # 200 MB are 50,000 pages
    assert (flags, devices) == ("False", "1")


@pytest.mark.parametrize("trains", [False, True])
def test_commands_that_read_leave_the_cores_to_decoding_and_xla(trains: bool) -> None:
    code = f"""
import numpy, threadpoolctl
from boneage_jax.cli import prepare_jax
before = [lib["num_threads"] for lib in threadpoolctl.threadpool_info()]
prepare_jax(compile_cache=False, trains={trains})
after = [lib["num_threads"] for lib in threadpoolctl.threadpool_info()]
print(max(before), max(after), len(after))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "2", "JAX_PLATFORMS": "cpu"},
    )
    before, after, libraries = map(int, done.stdout.split())
    assert libraries and before == 2
    assert after == (2 if trains else 1)

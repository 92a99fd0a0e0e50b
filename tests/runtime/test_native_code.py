"""Compiled code is found, made or done without."""

import os
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import jax.numpy as jnp
import pytest

from boneage_jax.runtime import native_code
from boneage_jax.runtime.native_code import (
    SWITCH,
    build_library,
    load_native_code,
    native_code_ahead,
)
from tests.support.compiling import xla_flags

ROOT = Path(__file__).parents[2]


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "boneage_jax" / "native"


def test_no_compiler_is_no_error(cache, monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build_library() is None and not cache.exists()


@pytest.mark.parametrize("text", ["exit 1", 'test "$1" = --version || exit 1', "exec missing"])
def test_a_compiler_that_fails_is_no_error(cache, monkeypatch, tmp_path, text):
    monkeypatch.setenv("CXX", script(tmp_path / "cxx", text))
    assert build_library() is None
    assert not cache.exists() or not list(cache.iterdir())


def test_a_library_is_made_once_for_each_compiler(cache, monkeypatch, tmp_path):
    linked = tmp_path / "linked"
    for version in ("1", "1", "2"):
        compiler = script(
            tmp_path / "cxx",
            f'if test "$1" = --version; then echo {version}; exit; fi\n'
            f'case "$*" in *-shared*) echo x >> {linked};; esac\n'
            'while test "$1" != -o; do shift; done; echo code > "$2"',
        )
        monkeypatch.setenv("CXX", compiler)
        assert build_library().read_text() == "code\n"
    assert linked.read_text() == "x\nx\n" and len(list(cache.iterdir())) == 2


def _runs(process: str) -> bool:
    try:
        return "zombie" not in Path("/proc", process, "status").read_text()
    except OSError:
        return False


def test_compilers_begin_at_once_and_are_ended_if_no_step_asks(cache, monkeypatch, tmp_path):
    begun = tmp_path / "begun"
    compiler = f'test "$1" = --version && exit\nsleep 1000 & echo $! >> {begun}; wait'
    monkeypatch.setenv("CXX", script(tmp_path / "cxx", compiler))
    monkeypatch.delenv(SWITCH, raising=False)
    monkeypatch.setattr(native_code.native, "is_of_use", lambda: True)
    monkeypatch.setattr(native_code.native, "_registered", False)
    deadline = time.monotonic() + 60
    with native_code_ahead():
        while not begun.exists() or len(begun.read_text().split()) < 2:
            assert time.monotonic() < deadline, "no compiler was started"
            time.sleep(0.01)
        assert native_code.native.is_pending()
    assert not native_code.native.is_pending() and not list(cache.iterdir())
    running = begun.read_text().split()
    while running:  # a killed process is there until the kernel comes to it
        assert time.monotonic() < deadline, f"compilers still run: {running}"
        running = [child for child in running if _runs(child)]


def test_the_first_question_loads_what_is_pending_once(monkeypatch):
    asked = []
    monkeypatch.setattr(native_code.native, "is_of_use", lambda: True)
    monkeypatch.setattr(native_code.native, "_registered", False)
    native_code.native.load_when_needed(lambda: asked.append(1))
    assert not native_code.native.is_enabled(jnp.bfloat16) and not asked  # there is no such code
    assert not native_code.native.is_enabled() and not native_code.native.is_enabled()
    assert asked == [1]


def test_a_damaged_library_is_made_again_once(monkeypatch, tmp_path):
    damaged, made = tmp_path / "damaged.so", []

    def build():
        made.append(damaged)
        damaged.write_bytes(b"no library")
        return damaged

    monkeypatch.delenv(SWITCH, raising=False)
    monkeypatch.setattr(native_code.native, "is_of_use", lambda: True)
    monkeypatch.setattr(native_code.native, "is_enabled", lambda: False)
    monkeypatch.setattr(native_code._Build, "begin", staticmethod(lambda: Mock(finish=build)))
    assert load_native_code() is False
    assert len(made) == 2 and not damaged.exists()


def test_code_that_others_can_write_is_not_run(cache, monkeypatch, tmp_path):
    compiler = 'test "$1" = --version && exit\nwhile test "$1" != -o; do shift; done; echo > "$2"'
    monkeypatch.setenv("CXX", script(tmp_path / "cxx", compiler))
    library = build_library()
    assert library.exists()
    library.chmod(0o666)
    assert build_library() is None
    library.chmod(0o600)
    cache.chmod(0o777)
    assert build_library() is None
    cache.chmod(0o700)
    assert build_library() == library


_STEP = """
import jax, jax.numpy as jnp
from boneage_jax.models.registry import create_model
from boneage_jax.runtime.process_setup import prepared_process

model = create_model("efficientnet_lite0", drop_path_rate=0.0)
images = jax.random.normal(jax.random.key(0), (2, 32, 32, 1))

def run(train):
    def loss(variables):
        found = model.apply(variables, images, train=train, mutable=["batch_stats"])
        return jnp.square(found[0]).sum()
    return loss

with prepared_process():
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    print(*("ffi_call" in str(jax.make_jaxpr(run(train))(shapes)) for train in (True, False)))
"""


@pytest.mark.parametrize(
    ("devices", "switch", "found"),
    [(1, "1", "True False"), (1, "0", "False False"), (2, "1", "False False")],
)
def test_train_steps_of_one_cpu_use_it_and_reading_does_not(native_library, devices, switch, found):
    home = native_library.parents[2]  # where it is compiled already
    environment = os.environ | {
        "XDG_CACHE_HOME": str(home),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(ROOT),
        SWITCH: switch,
    }
    done = subprocess.run(
        [sys.executable, "-c", _STEP], env=environment, capture_output=True, text=True
    )
    assert done.stdout.strip() == found, done.stderr[-2000:]


_GRADIENT = """
import jax, jax.numpy as jnp, numpy as np
from boneage_jax.models import native
from boneage_jax.models.registry import create_model
from boneage_jax.models.unet import UNet
from boneage_jax.runtime.process_setup import prepared_process

images = jax.random.normal(jax.random.key(0), (4, 64, 64, 1))

def gradients(model):  # with compiled code and without it
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    rng = np.random.default_rng(0)  # of about the size of trained ones
    draw = lambda x: jnp.asarray(0.2 * rng.normal(size=x.shape) + (x.ndim < 2), x.dtype)
    variables = jax.tree.map(draw, shapes)
    for on in (True, False):
        native._registered = on

        @jax.jit
        def gradient(params):
            def loss(params):
                both = variables | {"params": params}
                out, new = model.apply(both, images, train=True, mutable=["batch_stats"])
                return jnp.square(out).mean(), new
            return jax.value_and_grad(loss, has_aux=True)(params)
        assert ("ffi_call" in str(gradient.trace(variables["params"]).jaxpr)) == on
        yield gradient(variables["params"])

with prepared_process():
    assert native.is_loaded()
    network = create_model("efficientnet_b0", drop_path_rate=0.0)
    for model in (network, UNet("unet"), UNet("unet_10")):
        both = list(zip(*map(jax.tree.leaves, gradients(model)), strict=True))
        for ours, theirs in both:
            assert np.linalg.norm(ours - theirs) <= 0.01 * np.linalg.norm(theirs) + 1e-6
        print(len(both))
"""


def test_gradients_of_whole_networks_are_those_of_xlas_loops(native_library):
    environment = os.environ | {
        "XDG_CACHE_HOME": str(native_library.parents[2]),
        "XLA_FLAGS": xla_flags(),
        "PYTHONPATH": str(ROOT),
        SWITCH: "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", _GRADIENT], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert [int(count) > 40 for count in done.stdout.split()] == [True] * 3

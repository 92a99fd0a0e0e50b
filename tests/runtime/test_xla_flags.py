"""XLA's flags: only what was measured, only where it is known, never over the user's own."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

from boneage_jax.runtime import xla_flags
from boneage_jax.runtime.xla_flags import choose_for_cpu

_KERNELS = (
    "--xla_cpu_experimental_ynn_fusion_type="
    "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
)


@pytest.mark.parametrize(
    ("version", "before", "after"),
    [
        ("0.10.2", None, _KERNELS),
        ("0.10.0", "--xla_dump_to=/tmp/x", f"--xla_dump_to=/tmp/x {_KERNELS}"),
        ("0.10.2", _KERNELS, _KERNELS),
        (
            *("0.10.2", "--xla_cpu_experimental_ynn_fusion_type="),
            "--xla_cpu_experimental_ynn_fusion_type=",
        ),
        ("0.11.0", None, None),  # not measured; a flag that it lacks would end the process
        ("0.10.2", "", _KERNELS),
        ("0.10.2", "flags.txt", "flags.txt"),  # a file of flags
        ("0.12.0.1", "--xla_dump_to=/tmp/x", "--xla_dump_to=/tmp/x"),
        ("0.100.0", None, None),
    ],
)
def test_flags_by_version(monkeypatch, version, before, after):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    monkeypatch.setattr(Path, "read_text", lambda self: "flags\t\t: fpu avx2\n")
    if before is None:
        monkeypatch.delenv("XLA_FLAGS", raising=False)
    else:
        monkeypatch.setenv("XLA_FLAGS", before)
    choose_for_cpu()
    assert os.environ.get("XLA_FLAGS") == after


@pytest.mark.parametrize(
    ("features", "wide"),
    [
        ("fpu avx2", False),
        ("avx2 avx512f avx512bw", False),  # Skylake slows down
        ("avx2 avx512f avx512_bf16 amx_tile", True),
        ("avx2 avx512_bf16x", False),
    ],
)
def test_whole_registers_where_they_cost_nothing(monkeypatch, features, wide):
    text = f"processor\t: 0\nflags\t\t: {features}\nbugs\t\t: avx512_bf16\n"
    monkeypatch.setattr(Path, "read_text", lambda self: text)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.10.2")
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x")
    choose_for_cpu()
    last = ["--xla_cpu_prefer_vector_width=512"] if wide else []
    assert os.environ["XLA_FLAGS"].split() == ["--xla_dump_to=x", _KERNELS, *last]


def test_no_processor_to_ask_is_no_error(monkeypatch):
    def missing(self):
        raise FileNotFoundError(self)

    monkeypatch.setattr(Path, "read_text", missing)
    assert not xla_flags._has_fast_wide_vectors()
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.10.2")
    monkeypatch.setenv("XLA_FLAGS", "")
    choose_for_cpu()
    assert os.environ["XLA_FLAGS"] == "--xla_cpu_experimental_ynn_fusion_type="  # no YNNPACK


def test_xla_takes_the_flags(tmp_path):
    """In a fresh process, by what XLA writes down of its settings for a program."""
    if not importlib.metadata.version("jaxlib").startswith(tuple(xla_flags._MEASURED)):
        pytest.skip("for another jaxlib")
    code = """
from boneage_jax.runtime.xla_flags import choose_for_cpu
choose_for_cpu()
import jax
jax.jit(lambda x: x + 1, inline=True)(1.0)
"""
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_dump_to={tmp_path}"}
    subprocess.run([sys.executable, "-c", code], env=env, check=True)
    settings = next(tmp_path.glob("*.debug_options")).read_text().splitlines()
    chosen = {line.split(": ")[1] for line in settings if "ynn_fusion_type" in line}
    assert xla_flags._has_fast_wide_vectors() == any("vector_width: 512" in x for x in settings)
    assert chosen == {"LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT", "LIBRARY_FUSION_TYPE_REDUCE"}

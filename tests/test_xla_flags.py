"""XLA's flags: only what was measured, only where it is known, never over the user's own."""

import importlib.metadata
import os
import subprocess
import sys

import pytest

from boneage_jax import xla_flags
from boneage_jax.xla_flags import choose_cpu_kernels

_OURS = (
    "--xla_cpu_experimental_ynn_fusion_type="
    "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
)


@pytest.mark.parametrize(
    ("version", "before", "after"),
    [
        ("0.10.2", None, _OURS),
        ("0.10.0", "--xla_dump_to=/tmp/x", f"--xla_dump_to=/tmp/x {_OURS}"),
        ("0.10.2", _OURS, _OURS),
        (
            *("0.10.2", "--xla_cpu_experimental_ynn_fusion_type="),
            "--xla_cpu_experimental_ynn_fusion_type=",
        ),
        ("0.11.0", None, None),  # not measured; a flag that it lacks would end the process
        ("0.100.0", None, None),
    ],
)
def test_flags_by_version(monkeypatch, version, before, after):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    if before is None:
        monkeypatch.delenv("XLA_FLAGS", raising=False)
    else:
        monkeypatch.setenv("XLA_FLAGS", before)
    choose_cpu_kernels()
    assert os.environ.get("XLA_FLAGS") == after


def test_xla_takes_the_flags(tmp_path):
    """In a fresh process, by what XLA writes down of its settings for a program."""
    if not importlib.metadata.version("jaxlib").startswith(xla_flags._MEASURED_WITH):
        pytest.skip("for another jaxlib")
    code = """
from boneage_jax.xla_flags import choose_cpu_kernels
choose_cpu_kernels()
import jax
jax.jit(lambda x: x + 1, inline=True)(1.0)
"""
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_dump_to={tmp_path}"}
    subprocess.run([sys.executable, "-c", code], env=env, check=True)
    settings = next(tmp_path.glob("*.debug_options")).read_text().splitlines()
    chosen = {line.split(": ")[1] for line in settings if "ynn_fusion_type" in line}
    assert chosen == {"LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT", "LIBRARY_FUSION_TYPE_REDUCE"}

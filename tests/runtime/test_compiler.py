"""What XLA is asked for, by machine."""

import jax
import pytest

from boneage_jax.runtime import xla_flags


@pytest.mark.parametrize(
    ("backend", "devices", "chosen", "level"),
    [
        ("gpu", 8, "UNKNOWN", "O1"),
        ("gpu", 1, "UNKNOWN", "UNKNOWN"),  # nothing to hide
        ("tpu", 8, "UNKNOWN", "UNKNOWN"),  # on by default
        ("cpu", 8, "UNKNOWN", "UNKNOWN"),
        ("gpu", 8, "O0", "O0"),  # the user's
    ],
)
def test_the_effort_level_by_machine(monkeypatch, backend, devices, chosen, level):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    before = jax.config.jax_optimization_level
    try:
        jax.config.update("jax_optimization_level", chosen)
        xla_flags.hide_latency()
        assert jax.config.jax_optimization_level == level
    finally:
        jax.config.update("jax_optimization_level", before)

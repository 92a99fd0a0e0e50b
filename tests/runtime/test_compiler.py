"""What XLA is asked for, by machine."""

import jax
import pytest

from boneage_jax.runtime import cpu_memory, xla_flags


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


def test_the_heap_is_tidied_after_long_compilations_alone():
    calls = []

    def long() -> None:
        calls.append("long")

    def short() -> None:
        calls.append("short")

    for _ in range(2):  # listens once, however often a command asks
        cpu_memory.tidy_heap(short, longer_than=1e9)
        cpu_memory.tidy_heap(long, longer_than=0.0)
    jax.jit(lambda x: x * 3 + 1).lower(1.0).compile()
    assert calls == ["long"]

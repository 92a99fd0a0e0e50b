"""Serialises a `Program` by `jax.export`: one file for CPU, CUDA and TPU, read by JAX alone."""

from collections.abc import Callable
from typing import Any

import jax
import jax.export

from boneage_jax.exporting.program import Program
from boneage_jax.models.depthwise import implementation_for

_PLATFORMS = ("cpu", "cuda", "tpu")


def to_stablehlo(program: Program) -> bytearray:
    """Returns a file for `jax.export.deserialize`; the number of images is free.

    Its `call` takes image, and male where the sex is an input, and returns a dict by output. Each
    platform gets the depthwise convolution that is fastest there.
    """

    def on(backend: str) -> Callable[..., dict[str, jax.Array]]:
        return program.function(depthwise=implementation_for(backend))

    def call(*inputs: jax.Array) -> Any:
        return jax.lax.platform_dependent(
            program.members, *inputs, cpu=on("cpu"), tpu=on("tpu"), default=on("gpu")
        )

    (batch,) = jax.export.symbolic_shape("batch")
    exported = jax.export.export(jax.jit(call), platforms=_PLATFORMS)(*program.shapes(batch))
    return exported.serialize()


def reader(content: bytes | bytearray) -> Callable[..., dict[str, jax.Array]]:
    """Returns the function in a file of `to_stablehlo`."""
    return jax.export.deserialize(bytearray(content)).call

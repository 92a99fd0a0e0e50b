"""Reads the safetensors format: a JSON header with names, shapes and offsets, then the data."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from boneage_jax.errors import InputError
from boneage_jax.pretrained.torch_file import bfloat16_values
from boneage_jax.pretrained.weight import Weight


@contextlib.contextmanager
def open_safetensors(path: Path) -> Iterator[dict[str, Weight]]:
    """Context manager that yields the tensors of a `.safetensors` file by name.

    They can be read while the context is open.

    Args:
      path: the file; its header is checked against its length on opening.

    Raises:
      InputError: the file is damaged. The message does not name it.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            yield {name: _weight(file, name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise InputError(f"is no sound safetensors file ({error}); fetch it again") from error


def _weight(file, name: str) -> Weight:  # type: ignore[no-untyped-def]
    part = file.get_slice(name)
    bfloat16 = part.get_dtype() == "BF16"

    def values() -> np.ndarray:
        array = file.get_tensor(name)
        return bfloat16_values(array.view(np.uint16)) if bfloat16 else array

    return Weight(tuple(part.get_shape()), values)

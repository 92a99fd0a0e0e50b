"""Checks the arguments of library functions that predict."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from boneage_jax.errors import InputError
from boneage_jax.runtime.parallel import checked_devices, round_up

Image = str | os.PathLike[str] | np.ndarray


def listed_images(images: Image | Iterable[Image]) -> list[Path | np.ndarray]:
    """Returns paths and arrays, one or an iterable of them, as a list.

    Args:
      images: paths of files; uint8 [H, W] or [H, W, 1], not empty.

    Returns:
      Paths of files that exist, and arrays uint8 [H, W].

    Raises:
      InputError: neither, or no such file.
    """
    shape: Any = getattr(images, "shape", ())
    one_array = len(shape) == 2 or (len(shape) == 3 and shape[-1] == 1)
    if len(shape) == 3 and 1 < shape[-1] <= 4:
        raise InputError(f"images is an array {list(shape)}, which looks like colour; make it grey")
    given: Any = [images] if isinstance(images, str | os.PathLike) or one_array else images
    try:
        given = list(given)
    except TypeError:
        raise InputError(
            f"images is {images!r}; give paths of files or uint8 arrays [H, W], or a list of them"
        ) from None
    return [
        _existing(image) if isinstance(image, str | os.PathLike) else check_image(image, number)
        for number, image in enumerate(given)
    ]


def _existing(path: str | os.PathLike[str]) -> Path:
    if not os.path.isfile(path):
        kind = "a folder; name its files" if os.path.isdir(path) else "no such file"
        raise InputError(f"{os.fspath(path)!r}: {kind}")
    return Path(os.fsdecode(path))


def checked_sexes(male: Sequence[int] | np.ndarray | None, count: int) -> np.ndarray:
    """Returns sexes, 1, 0 or -1 for unknown, as int64 [count]; None stands for unknown ones.

    Raises:
      InputError: other values, or another number of them.
    """
    if male is None:
        return np.full(count, -1)
    try:
        sexes = np.asarray(male)
    except ValueError:  # lists of several lengths
        sexes = np.zeros(0)
    if sexes.shape != (count,) or not np.isin(sexes, (-1, 0, 1)).all():
        raise InputError(f"male must hold 1, 0 or -1 for each of the {count} images")
    return sexes.astype(np.int64)


def checked_stems(stems: Sequence[str] | None, count: int) -> list[str] | None:
    """Returns the names of `count` images as a list; None stands for those of their files.

    Raises:
      InputError: not a list of texts, or another number of them.
    """
    if stems is None:
        return None
    listed = isinstance(stems, list | tuple | np.ndarray) and len(stems) == count
    if not listed or not all(isinstance(stem, str) for stem in stems):
        raise InputError(f"stems must name each of the {count} images, as a list of texts")
    return list(stems)


def check_image(image: np.ndarray, number: int) -> np.ndarray:
    """Checks a radiograph and returns it as uint8 [H, W].

    Args:
      image: uint8 [H, W] or [H, W, 1], not empty.
      number: index of the image, for the message.

    Raises:
      InputError: another shape or dtype, or an empty image.
    """
    image = np.asarray(image)
    if image.ndim == 3 and image.shape[-1] == 1:
        image = image[..., 0]
    if image.ndim != 2 or image.dtype != np.uint8 or not image.size:
        raise InputError(
            f"image {number} must be uint8 [H, W], got {image.dtype} {list(image.shape)}; "
            "read files with boneage_jax.data.files.read_grey"
        )
    return image


def rounded_batch_size(batch_size: int, devices: Sequence[jax.Device] | None = None) -> int:
    """Checks a batch size and rounds it up to a multiple of the number of devices.

    Raises:
      InputError: not a whole number above 0, or no devices.
    """
    if (
        isinstance(batch_size, bool)
        or not isinstance(batch_size, int | np.integer)
        or batch_size < 1
    ):
        raise InputError(f"batch_size={batch_size!r} must be a whole number above 0")
    return round_up(int(batch_size), len(checked_devices(devices)))


def checked_workdir(workdir: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """Returns `workdir` if it is a path.

    Raises:
      InputError: it is something else, or empty.
    """
    if not isinstance(workdir, str | os.PathLike) or not os.fspath(workdir):
        raise InputError(f"workdir={workdir!r} must be the path of a training's workdir")
    return workdir

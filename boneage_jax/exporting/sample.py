"""Images on which an exported file is compared with the network, and int8 is fitted."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from boneage_jax.data.file_names import image_stem
from boneage_jax.data.files import read_radiograph
from boneage_jax.data.find_files import find_images
from boneage_jax.datasets import open_dataset
from boneage_jax.errors import InputError
from boneage_jax.exporting.program import Program
from boneage_jax.extensions import DATASETS
from tfds_rsna.builders import is_prepared
from tfds_rsna.hand_phantom.render import make_phantom

_COUNT = 100


class Sample(NamedTuple):
    """Images as an exported file takes them.

    Attributes:
      name: where they come from, for the user.
      squares: uint8 [S, S] each, see `Program.fit`.
      prepared: the same as `predict` gives them to the network, see `Program.prepare`.
      male: 1, 0 or -1 for unknown, int32 [n].
      ages: months [n], None if unknown.
      real: whether they are radiographs, not drawn.
    """

    name: str
    squares: list[np.ndarray]
    prepared: list[np.ndarray]
    male: np.ndarray
    ages: np.ndarray | None = None
    real: bool = True


def take_sample(program: Program, paths: Sequence[str], count: int = _COUNT) -> Sample:
    """Returns images of the user, else of the validation split where it is prepared, else drawn.

    Args:
      program: the network.
      paths: image files, folders or globs.
      count: most images.

    Raises:
      InputError: `paths` hold no readable image.
    """
    if paths:
        return _of_files(program, paths, count)
    if program.hand_mask:  # what is prepared has no background any more
        return _drawn(program, count)
    return _of_validation(program, count) or _drawn(program, count)


def _of_files(program: Program, paths: Sequence[str], count: int) -> Sample:
    files = find_images(paths)
    spread = np.unique(np.linspace(0, len(files) - 1, min(count, len(files))).round().astype(int))
    squares: list[np.ndarray] = []
    prepared: list[np.ndarray] = []
    failed: InputError | None = None
    for number in spread:
        file = files[number]
        try:
            pixels, stem = read_radiograph(file)[0], image_stem(file)
            prepared.append(program.prepare(pixels, stem))
            squares.append(program.fit(pixels, stem))
        except InputError as error:
            failed = error
    if failed and not squares:
        raise failed
    name = f"{len(squares)} of the radiographs given"
    return Sample(name, squares, prepared, _each_sex(len(squares)))


def _of_validation(program: Program, count: int) -> Sample | None:
    config = program.network.config
    data = ConfigDict(config.data.to_dict())
    data.raw_dir = ""  # what is prepared is enough: no raw folder is asked whether it changed
    try:
        if data.name in DATASETS or not is_prepared(f"{data.name}/{data.config}", data.data_dir):
            return None
        dataset = open_dataset(data)
        split = dataset.split(data.eval_split)
    except InputError:
        return None
    if dataset.image_size != program.image_size or not len(split):
        return None
    rows = np.linspace(0, len(split) - 1, min(count, len(split))).round().astype(int)
    part = split.take(split.name, rows)
    male = part.labels.get("male", _each_sex(len(rows)))
    squares = list(part.images())
    return Sample(
        f"{len(rows)} of the {split.name} split of {data.name}",
        squares,
        _prepared(program, squares),
        np.asarray(male, np.int32),
        part.labels.get("bone_age"),
    )


def _drawn(program: Program, count: int) -> Sample:
    side = program.image_size
    squares = [make_phantom(n, side, "validation").image.reshape(side, side) for n in range(count)]
    real = program.network.config.data.name == "hand_phantom"
    prepared = _prepared(program, squares)
    return Sample(f"{count} drawn hands", squares, prepared, _each_sex(count), real=real)


def _prepared(program: Program, squares: list[np.ndarray]) -> list[np.ndarray]:
    changes = program.puts_right or program.hand_mask
    return [program.prepare(x, "") for x in squares] if changes else squares


def _each_sex(count: int) -> np.ndarray:
    return (np.arange(count) % 3 - 1).astype(np.int32)

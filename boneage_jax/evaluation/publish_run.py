"""Publishes the network of a workdir, and measures what rounding its weights changes."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from boneage_jax.data.source import Split
from boneage_jax.datasets import open_dataset
from boneage_jax.errors import InputError
from boneage_jax.evaluation.members import average_beside_labels, predict_split
from boneage_jax.inference.load_trained import Trained, average, load_members
from boneage_jax.inference.network import Rows
from boneage_jax.inference.publish import check_new_folder, write_published
from boneage_jax.storage.layout import WEIGHTS
from boneage_jax.storage.shipped import open_network
from boneage_jax.storage.workdir import read_config

_PHANTOMS = 32
_SIDE = 256  # pixels of a phantom, before it is fitted to the network


class Rounding(NamedTuple):
    """How predictions change when weights are rounded.

    Attributes:
      images: what was predicted, with its number.
      unit: of the changes.
      mean, largest: absolute change per image.
      error: change of the mean absolute error, None without true ages.
    """

    images: str
    unit: str
    mean: float
    largest: float
    error: float | None


def publish(
    workdir: str | Path,
    output: Path,
    *,
    name: str = "",
    license_file: Path | None = None,
    data: str = "",
    evaluations: Sequence[Path] = (),
    raw_dir: str = "",
    data_dir: str = "",
) -> list[str]:
    """Writes the network of a workdir as a folder for others, see `storage/published.py`.

    Args:
      workdir: workdir of a finished training, or what else `load_predictor` takes.
      output: the folder to write; absent or empty.
      name, license_file, data, evaluations: see
        `boneage_jax.inference.publish.write_published`.
      raw_dir, data_dir: where the data of the run is; its validation images then show what
        rounding changes, else phantoms do.

    Returns:
      Lines for the user: number of bytes, and what rounding changes.

    Raises:
      InputError: see `write_published`.
    """
    check_new_folder(output)
    source = open_network(workdir)
    before = load_members(source)
    split = _validation_split(read_config(source), raw_dir, data_dir)
    write_published(
        before,
        source,
        output,
        name=name,
        license_file=license_file,
        data=data,
        evaluations=evaluations,
    )
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    after = load_members(output)
    change = _on_split(before, after, split) if split else _on_phantoms(before, after)
    error = "" if change.error is None else f"; mean absolute error {change.error:+.4f}"
    return [
        f"{output / WEIGHTS}: {len(after)} network{'s' if len(after) > 1 else ''}, "
        f"{size / 1e6:.1f} MB with all files",
        f"rounding to float16 changes predictions on {change.images} by {change.mean:.4f} "
        f"{change.unit} on average, {change.largest:.4f} at most{error}",
    ]


def _validation_split(config: ConfigDict, raw_dir: str, data_dir: str) -> Split | None:
    """Opens the validation split, None if its data are not named and not at hand."""
    data = ConfigDict(config.data.to_dict())
    data.raw_dir, data.data_dir = raw_dir or data.raw_dir, data_dir or data.data_dir
    at_hand = data.raw_dir and Path(data.raw_dir).exists()
    if not (raw_dir or data_dir or at_hand):
        return None
    try:
        return open_dataset(data).split(data.eval_split)
    except InputError as error:
        if raw_dir or data_dir:
            raise
        print(f"the data of the run are not used: {error}", file=sys.stderr)
        return None


def _on_split(before: Sequence[Trained], after: Sequence[Trained], split: Split) -> Rounding:
    old, new = (
        average_beside_labels(predict_split(members, split), split, members[0].network.task)
        for members in (before, after)
    )
    error = None
    if "true_age" in old:
        errors = [
            np.abs(rows["predicted_age"] - rows["true_age"]).mean(dtype=np.float64)
            for rows in (old, new)
        ]
        error = float(errors[1] - errors[0])
    change = _compare(old, new, f"the {len(split)} images of split {split.name}")
    return change._replace(error=error)


def _on_phantoms(before: Sequence[Trained], after: Sequence[Trained]) -> Rounding:
    from boneage_jax.data.files import fit_square
    from tfds_rsna.hand_phantom.render import make_phantom

    network = before[0].network
    phantoms = [make_phantom(index, _SIDE, "test") for index in range(_PHANTOMS)]
    images = [fit_square(phantom.image, network.info.image_size) for phantom in phantoms]
    sexes = np.array([phantom.male for phantom in phantoms])

    def read(members: Sequence[Trained]) -> Rows:
        variables, size = [member.variables for member in members], network.batch_size
        parts = [
            average(
                network.read(variables, images[at : at + size], {"male": sexes[at : at + size]})
            )
            for at in range(0, len(images), size)
        ]
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    return _compare(read(before), read(after), f"{_PHANTOMS} phantoms")


def _compare(old: Rows, new: Rows, images: str) -> Rounding:
    key = next(iter(name for name in ("predicted_age", "p_hand") if name in old), next(iter(old)))
    change = np.abs(old[key].astype(np.float64) - new[key])
    unit = {"predicted_age": "months", "p_hand": "of 255"}.get(key, f"of {key}")
    return Rounding(images, unit, float(change.mean()), float(change.max()), None)

"""Writes the folder of a published network, see `boneage_jax.storage.published`."""

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from boneage_jax.config import save_config
from boneage_jax.data.mask_cost import NOTE, read_note
from boneage_jax.errors import InputError
from boneage_jax.inference.calibration import Calibration
from boneage_jax.inference.load_trained import Trained, load_members
from boneage_jax.json_file import read_json
from boneage_jax.report.model_card import license_text, model_card, site_note
from boneage_jax.report.run_report import read_report
from boneage_jax.storage.layout import (
    BACKGROUND,
    CALIBRATION,
    CARD,
    CONFIG,
    INFO,
    LICENSE,
    REPORT,
    SITE,
    WEIGHTS,
)
from boneage_jax.storage.published import Saved, save_networks, write_sums
from boneage_jax.storage.safe_write import writing
from boneage_jax.storage.workdir import read_config

# Keys of a config that name places on one machine.
_PLACES = ("raw_dir", "data_dir", "masks")
_UNET = "unet"  # in background/
_ROUNDING = 0.05  # months of error between a network and itself in float16, at most


def write_published(
    members: Sequence[Trained],
    source: Path,
    output: Path,
    *,
    name: str = "",
    license_file: Path | None = None,
    calibration: Calibration | None = None,
    card: bool = True,
    data: str = "",
    evaluations: Sequence[Path] = (),
    more: Mapping[str, Any] | None = None,
) -> None:
    """Writes the folder of a published network; it is complete or absent.

    Paths of this machine are taken out of config and report.

    Args:
      members: see `boneage_jax.inference.load_trained.load_members`.
      source: their workdir, or the folder of a published network.
      output: the folder to write; absent or empty.
      name: name of the network on its card, by default that of `output`.
      license_file: terms of the weights, by default those of `source` if it is published, else of
        the data that it was trained on.
      calibration: used instead of that of `source`.
      card: write a model card; if not, that of `source` is copied, if there is one.
      data: what the card says of a data set that this package does not know.
      evaluations: reports of further evaluations of the network, see `add_evaluation`.
      more: JSON contents by name of a file to add.

    Raises:
      InputError: `output` is not empty or cannot be written; a file of `source` is missing or
        damaged; huggingface_hub, which makes the card, is not installed.
    """
    network, config = members[0].network, read_config(source)
    report = _without_places(read_report(source))
    more = dict(more or {})
    if SITE not in more and (source / SITE).is_file():
        more[SITE] = read_json(source / SITE)
    if SITE in more and evaluations:
        raise InputError(
            f"{source} is calibrated to a site, and evaluations are of the network before; publish "
            "that one with them, then calibrate it"
        )
    for path in evaluations:
        add_evaluation(report, path)
    name = name or output.absolute().name
    pixels = network.info.image_size
    if card:
        description = model_card(name, report, pixels=pixels, members=len(members), data=data)
    else:
        description = _read_text(source / CARD) if (source / CARD).is_file() else ""
    if SITE in more and description:
        description = site_note(description, more[SITE])
    if license_file or (source / LICENSE).is_file():
        terms = _read_text(license_file or source / LICENSE)
    else:
        terms = license_text(config.data.name)
    if network.task.name == "bone_age" and calibration is None:
        calibration = Calibration.load(source / CALIBRATION)
    with _whole_folder(output) as part:
        save_networks(part / WEIGHTS, [_saved(member) for member in members])
        save_config(part / CONFIG, ConfigDict(_without_places(config.to_dict())))
        _write_json(part / INFO, dataclasses.asdict(network.info))
        _write_json(part / REPORT, report)
        for file, content in more.items():
            _write_json(part / file, content)
        if calibration is not None:
            calibration.save(part / CALIBRATION)
        _publish_background(source / BACKGROUND, part / BACKGROUND)
        (part / LICENSE).write_text(terms, encoding="utf-8")
        if description:
            (part / CARD).write_text(description, encoding="utf-8")
        write_sums(part)


def add_evaluation(report: dict[str, Any], path: Path) -> None:
    """Adds the results of a later evaluation to the report of a network, for its card.

    Those on another split become a part of `evaluations`, a table of stresses becomes `stress`.

    Args:
      report: contents of the network's report.json; changed.
      path: report.json of `boneage_jax.evaluate`.

    Raises:
      InputError: the file is no report, or is of another network or data set.
    """
    try:
        found = _without_places(read_json(path))
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; it is to be a report.json") from error
    try:
        same = all(
            found[group][key] == report[group][key]
            for group, key in (
                *(("dataset", "name"), ("compute", "train_flops")),
                *(("config", key) for key in ("model", "seed", "optimizer", "augment", "loss")),
            )
        )
        own = found["dataset"]["split"] == report["dataset"]["split"]
        if same and own and "age" in report:  # alike but for rounding to float16
            same = abs(found["age"]["mae"] - report["age"]["mae"]) < _ROUNDING
        split, opened = found["dataset"]["split"], found["dataset"]["splits"]
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{path} is no report.json of boneage_jax.evaluate ({type(error).__name__}: {error})"
        ) from error
    if not same:
        raise InputError(
            f"{path} is of another network or data set than the one that is published; evaluate "
            "that one"
        )
    if split != report["dataset"]["split"]:
        results = {key: found[key] for key in ("age", "sex", "mask") if key in found}
        part = {"split": split, "images": opened.get(split)} | results
        report["evaluations"] = [*report.get("evaluations", []), part]
    elif "stress" not in found:
        raise InputError(
            f"{path} is of the split {split!r}, which the network's own report states; evaluate "
            "another split, or --stress"
        )
    if "stress" in found and split == report["dataset"]["split"]:
        report["stress"] = found["stress"]


def check_new_folder(output: Path) -> None:
    """Checks that a folder can be written without replacing anything.

    Raises:
      InputError: it exists and is not empty, or the folder it is to be in does not exist.
    """
    try:
        taken = output.exists() and (not output.is_dir() or any(output.iterdir()))
    except OSError as error:
        raise InputError(f"--output={output} cannot be read: {error.strerror}") from error
    if taken:
        raise InputError(f"--output={output} exists; name a new folder")
    if not output.absolute().parent.is_dir():
        raise InputError(f"--output={output} must be in a folder that exists")


@contextlib.contextmanager
def _whole_folder(output: Path) -> Iterator[Path]:
    """Context manager that yields a new folder; it becomes `output` if the block succeeds."""
    check_new_folder(output)
    with writing(output):
        part = _new_folder(output.absolute().name + ".part", output.absolute().parent)
        try:
            yield part
            part.replace(output)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def _new_folder(name: str, parent: Path) -> Path:
    """Creates a folder that was not there: `name`, with a number if that is taken."""
    number = 0
    while True:
        folder = parent / f"{name}{number or ''}"
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1


def _saved(member: Trained) -> Saved:
    arrays = flatten_dict(jax.device_get(member.variables), sep="/")
    found = {name: np.asarray(values, np.float32) for name, values in arrays.items()}
    return Saved(found, member.flops_spent, member.step)


def _publish_background(source: Path, target: Path) -> None:
    """Copies the removal of the background, its U-Net as a published one."""
    if read_note(source) is None:
        return
    target.mkdir()
    shutil.copyfile(source / NOTE, target / NOTE)
    unet = source / _UNET
    if unet.is_dir():
        (member,) = load_members(unet, task="hand_mask", eval_batch_size=jax.device_count())
        part = target / _UNET
        part.mkdir()
        save_networks(part / WEIGHTS, [_saved(member)])
        config = _without_places(read_config(unet).to_dict())
        save_config(part / CONFIG, ConfigDict(config))
        _write_json(part / INFO, dataclasses.asdict(member.network.info))
        write_sums(part)


def _without_places(value: Any) -> Any:
    """Returns JSON values without the paths of this machine: their last part, or nothing."""
    if isinstance(value, Mapping):
        return {
            key: "" if key in _PLACES and isinstance(part, str) else _without_places(part)
            for key, part in value.items()
        }
    if isinstance(value, list | tuple):
        return [_without_places(part) for part in value]
    is_path = isinstance(value, str) and value.startswith((os.sep, "~", "./", "../", "gs:"))
    return Path(value).name if is_path else value


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error

"""Networks by name: those in the package, in folders of the user's, and on the Hugging Face hub."""

import contextlib
import difflib
import os
from pathlib import Path
from typing import Any, NamedTuple

import boneage_jax
from boneage_jax.errors import InputError
from boneage_jax.json_file import read_json
from boneage_jax.storage.hub import PREFIX, fetch_folder
from boneage_jax.storage.layout import (
    BACKGROUND,
    CALIBRATION,
    CONFIG,
    INFO,
    LICENSE,
    REPORT,
    SITE,
    SUMS,
    WEIGHTS,
    is_published,
    is_workdir,
)
from boneage_jax.storage.published import check_sums, count_networks

SEARCH_PATH = "BONEAGE_JAX_WEIGHTS"  # folders of published networks, with colons between them
_LIGHT = 10e6  # bytes
FETCHED = (
    *(SUMS, WEIGHTS, CONFIG, INFO, CALIBRATION, SITE, REPORT, LICENSE),
    f"{BACKGROUND}/*",
)


class Shipped(NamedTuple):
    """What the folder of a network says of it; None where it does not.

    Attributes:
      name: name of the folder.
      folder: the folder.
      task: bone_age, hand_mask, or one of the user's.
      network: `config.model.name`, with the number of networks if there are several.
      members: that number.
      pixels: height and width of what the network reads, as HEIGHTxWIDTH; one number if equal.
      flops: FLOPs per image.
      parameters: number of parameters of all its networks.
      train_flops: FLOPs of training.
      mae: mean absolute error on the validation split, in months.
      iou: intersection over union of hand masks on the validation split, pooled over the images.
      bytes: size of its weights.
      calibrated: fitted to a site by `calibrate`; `mae` is that of the network before.
    """

    name: str
    folder: Path
    task: str
    network: str
    members: int
    pixels: str | None
    flops: int | None
    parameters: int | None
    train_flops: int | None
    mae: float | None
    iou: float | None
    bytes: int
    calibrated: bool


def shipped_folders() -> dict[str, Path]:
    """Returns the folders of published networks by name, without reading them.

    They are the subfolders of the folders that the environment variable BONEAGE_JAX_WEIGHTS names,
    and those of `weights/` in the package; the first of a name counts.
    """
    places = [
        Path(text).expanduser() for text in os.environ.get(SEARCH_PATH, "").split(":") if text
    ]
    found: dict[str, Path] = {}
    for place in (*places, Path(boneage_jax.__file__).parent / "weights"):
        for folder in sorted(place.iterdir()) if place.is_dir() else ():
            if folder.is_dir() and is_published(folder):
                found.setdefault(folder.name, folder)
    return found


def shipped_networks() -> list[Shipped]:
    """Reads what the folders of published networks say of them, sorted by task and error.

    Raises:
      InputError: a file of one is missing or damaged.
    """
    return _sorted([_describe(name, folder) for name, folder in shipped_folders().items()])


def _sorted(networks: list[Shipped]) -> list[Shipped]:
    return sorted(networks, key=lambda one: (one.task, one.mae or 1e9, -(one.iou or 0), one.name))


def best_network(task: str = "bone_age") -> str:
    """Returns the name of the published network with the lowest error on its validation split.

    Of single networks of at most 10 MB, for somebody who names none; larger ones and ensembles,
    which take several times as long, only if there are no others. Never one that is calibrated to
    a site: whose radiographs are read is not known here. Damaged folders are left out.

    Raises:
      InputError: there is none.
    """
    known = []
    for name, folder in shipped_folders().items():
        with contextlib.suppress(InputError):
            known.append(_describe(name, folder))
    known = [one for one in _sorted(known) if one.task == task and not one.calibrated]
    for one in sorted(known, key=lambda one: (one.members > 1, one.bytes > _LIGHT)):
        return one.name
    raise InputError(
        "no trained network comes with this version; name the workdir of a training, a folder of "
        f"published weights or hf:OWNER/REPO with --workdir, or the folder they are in with "
        f"{SEARCH_PATH}=DIR"
    )


def find_network(source: str | os.PathLike[str]) -> Path | None:
    """Returns the folder of a network given by its name or by hf:OWNER/REPO; None for others.

    A folder of the user's counts before a published network of the same name.

    Raises:
      InputError: the hub does not have it, or cannot be reached.
    """
    text = os.fspath(source)
    if isinstance(text, str) and text.startswith(PREFIX):
        return fetch_folder(text, FETCHED)
    return shipped_folders().get(text) if _is_name(text) else None


def _is_name(text: str | bytes) -> bool:
    """Returns whether a text may be the name of a network rather than a path."""
    known = isinstance(text, str) and text.isprintable() and text and ":" not in text
    return bool(known) and os.path.basename(text) == text and not is_workdir(Path(str(text)))


def open_network(source: str | os.PathLike[str]) -> Path:
    """Returns the local folder of a network; the sums of a published one are checked.

    Args:
      source: the name of a published network, hf:OWNER/REPO, the folder of a published network, or
        a workdir, see `boneage_jax.storage.bucket.open_workdir`.

    Raises:
      InputError: see `find_network`, `open_workdir` and `check_sums`; or an unknown name.
    """
    folder = find_network(source) or _own_folder(source)
    if is_published(folder):
        check_sums(folder)
    return folder


def _own_folder(source: str | os.PathLike[str]) -> Path:
    text = os.fspath(source)
    if _is_name(text) and not os.path.lexists(text) and not text.startswith("~"):
        known = shipped_folders()
        near = difflib.get_close_matches(text, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(
            f"{text} holds no run: there is neither such a folder nor a network of that name; "
            f"{hint}known are {', '.join(known) or 'none'}"
        )
    from boneage_jax.storage.bucket import open_workdir  # loads JAX

    return open_workdir(source)


def network_table(networks: list[Shipped]) -> list[str]:
    """Returns the lines of a table of networks."""
    if not networks:
        return ["no trained network comes with this version"]
    rows: list[list[str]] = [
        ["name", "network", "pixels", "FLOPs/image", "parameters", "training FLOPs", "error"]
    ]
    for one in networks:
        error = f"{one.mae:.2f} months" if one.mae is not None else "-"
        error = f"IoU {one.iou:.3f}" if one.iou is not None else error
        error += ", before its calibration to a site" if one.calibrated else ""
        costs = [_short(value) for value in (one.flops, one.parameters, one.train_flops)]
        rows.append([one.name, one.network, f"{one.pixels or '-'}", *costs, error])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _short(value: int | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _describe(name: str, folder: Path) -> Shipped:
    config, info, report = (_read(folder / file) for file in (CONFIG, INFO, REPORT))
    task = config.get("task")
    model, compute = _part(config, "model").get("name"), _part(report, "compute")
    members = count_networks(folder)
    return Shipped(
        name=name,
        folder=folder,
        task=str(task),
        network=f"{members} x {model}" if members > 1 else str(model),
        members=members,
        pixels=_pixels(config, info),
        flops=_number(compute, "flops_per_prediction", int),
        parameters=_number(compute, "parameters", int),
        train_flops=_number(compute, "train_flops", int),
        mae=_number(_part(report, "age"), "mae", float),
        iou=_number(_part(_part(report, "mask"), "pooled"), "iou", float),
        bytes=(folder / WEIGHTS).stat().st_size if (folder / WEIGHTS).is_file() else 0,
        calibrated=(folder / SITE).is_file(),
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except FileNotFoundError:
        raise InputError(f"{path} is missing; fetch the folder again") from None
    if not isinstance(found, dict):
        raise InputError(f"{path} is damaged: expected a JSON object; fetch the folder again")
    return found


def _part(found: dict[str, Any], key: str) -> dict[str, Any]:
    part = found.get(key)
    return part if isinstance(part, dict) else {}


def _pixels(config: dict[str, Any], info: dict[str, Any]) -> str | None:
    stored = _number(info, "image_size", int)
    if stored is None:
        return None
    data = _part(config, "data")
    height, width = (_number(data, key, int) or stored for key in ("height", "width"))
    return f"{height}" if height == width else f"{height}x{width}"


def _number(part: dict[str, Any], key: str, kind: type) -> Any:
    value = part.get(key)
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return kind(value) if known else None

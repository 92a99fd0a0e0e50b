"""The file of a calibration: plain arrays in an .npz, none of which is executed when read."""

import io
import math
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from boneage_jax.errors import InputError
from boneage_jax.inference.atlas_ages import SHAPE as ATLAS_SHAPE
from boneage_jax.inference.atlas_ages import AtlasAges
from boneage_jax.inference.bias_correction import Correction
from boneage_jax.inference.view import View
from boneage_jax.inference.view_network import SHAPES as VIEW_SHAPES
from boneage_jax.json_file import read_bytes
from boneage_jax.ranges import RANGES, Range
from boneage_jax.storage.safe_write import in_one_piece

_COUNT = 10  # numbers that describe an image, see `image_statistics`
_UNKNOWN = ("max_distance", "youngest", "oldest")  # may be infinite or NaN
_RANGES = {
    "half_width": Range(0, 1e9),
    "max_distance": Range(0, 1e9, or_also=math.inf),
    "images": Range(0, 1e12),
    "youngest": Range(-1e4, 1e4),
    "oldest": Range(-1e4, 1e4),
    "tilt": Range(-1e3, 1e3),
    "centre": Range(-1e4, 1e4),
}
_SHAPES: dict[str, tuple[int, ...]] = {
    **{name: () for name in ("half_width", "slope", "intercept", "images", "tilt", "centre")},
    **{name: () for name in _UNKNOWN},
    "mean": (_COUNT,),
    "precision": (_COUNT, _COUNT),
}
# What files of older versions do not have.
_OLDER = {"slope": 1.0, "intercept": 0.0, "images": 0, "youngest": math.nan, "oldest": math.nan}
_OLDER |= {"tilt": 0.0, "centre": 0.0}
# Arrays of a view network, all of them or none; `view_threshold` tells whether a file has one.
_VIEW = "view_"
_VIEW_THRESHOLD = f"{_VIEW}threshold"
_VIEW_SHAPES = {_VIEW_THRESHOLD: ()} | {_VIEW + name: VIEW_SHAPES[name] for name in VIEW_SHAPES}
# Likewise of the ages that readers write down.
_ATLAS_COUNTS, _ATLAS_DEVIATION = "atlas_counts", "atlas_deviation"
_ATLAS_SHAPES = {_ATLAS_COUNTS: ATLAS_SHAPE, _ATLAS_DEVIATION: ()}
_LARGEST_WEIGHT = 1e3  # ours are below 10; products of such cannot overflow
_MOST_LABELS = 1e9
_LARGEST = 2**20  # bytes of a file; ours have 3,500, and 170,000 with a view network
_UNREADABLE = (
    *(ValueError, KeyError, OSError, EOFError, RuntimeError, NotImplementedError, MemoryError),
    *(zipfile.BadZipFile, zlib.error),
)


def write_fields(path: Path, fields: dict[str, Any]) -> None:
    """Writes the fields of a `Calibration`, as `dataclasses.asdict` gives them, atomically."""
    arrays = dict(fields)
    correction, view = arrays.pop("correction"), arrays.pop("view")
    if atlas := arrays.pop("atlas"):
        arrays |= {_ATLAS_COUNTS: atlas["counts"], _ATLAS_DEVIATION: atlas["deviation"]}
    if view:
        arrays[_VIEW_THRESHOLD] = view["threshold"]
        arrays |= {_VIEW + name: values for name, values in view["weights"].items()}
    with in_one_piece(path) as part, part.open("wb") as file:
        np.savez(file, **correction, **arrays)


def read_fields(path: Path) -> dict[str, Any]:
    """Returns the fields of a `Calibration` by name, checked.

    Raises:
      InputError: the file is missing or damaged.
    """
    try:
        stored = _read_arrays(path)
        parts = {"view": _take_view(stored), "atlas": _take_atlas(stored)}
        numbers = {key: float(values) for key, values in stored.items() if not values.shape}
        _check_numbers(numbers)
        if np.linalg.eigvalsh(stored["precision"]).min() <= 0:
            raise ValueError("precision is not positive definite")
        return {
            **parts,
            "mean": stored["mean"],
            "precision": stored["precision"],
            "correction": Correction(numbers.pop("slope"), numbers.pop("intercept")),
            "images": int(numbers.pop("images")),
            **numbers,
        }
    except FileNotFoundError:
        raise InputError(
            f"{path} is missing: the training in this workdir has not ended; start it again, "
            "or fetch a published folder again"
        ) from None
    except _UNREADABLE as error:
        reason = str(error).removeprefix(f"{path} ")
        raise InputError(
            f"{path} is damaged ({reason}); remove it and report.json and run main "
            "again, or fetch a published folder again"
        ) from error


def _take_view(stored: dict[str, np.ndarray]) -> View | None:
    """Removes the arrays of a view network from `stored` and returns it."""
    threshold = stored.pop(_VIEW_THRESHOLD, None)
    if threshold is None:
        return None
    weights = {name: stored.pop(_VIEW + name) for name in VIEW_SHAPES}
    largest = max(np.abs(values).max() for values in weights.values())
    if largest > _LARGEST_WEIGHT:
        raise ValueError(f"a weight of the view network is {largest:g}")
    return View({name: w.astype(np.float32) for name, w in weights.items()}, float(threshold))


def _take_atlas(stored: dict[str, np.ndarray]) -> AtlasAges | None:
    """Removes the arrays of the ages that readers write down from `stored` and returns them."""
    counts = stored.pop(_ATLAS_COUNTS, None)
    if counts is None:
        return None
    deviation = float(stored.pop(_ATLAS_DEVIATION))
    if counts.min() < 0 or counts.max() > _MOST_LABELS or not RANGES["test_atlas"].low < deviation:
        raise ValueError(f"{_ATLAS_COUNTS} or {_ATLAS_DEVIATION}={deviation:g} is out of range")
    return AtlasAges(counts.astype(np.float64), deviation)


def _check_numbers(numbers: Mapping[str, float]) -> None:
    for key, found in _RANGES.items():
        unknown = key in ("youngest", "oldest") and math.isnan(numbers[key])
        if numbers[key] not in found and not unknown:
            raise ValueError(f"{key}={numbers[key]:g} must be {found}")
    if not numbers["images"].is_integer():
        raise ValueError(f"images={numbers['images']:g} must be a whole number")
    if numbers["youngest"] > numbers["oldest"]:
        raise ValueError("youngest is above oldest")


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of a calibration; checks shapes before anything of that size is allocated.

    Raises:
      ValueError: a file that is too large, or an array that is missing, of another shape, or not
        finite. Damaged archives raise other errors, see `_UNREADABLE`.
    """
    found: dict[str, np.ndarray] = {}
    with zipfile.ZipFile(io.BytesIO(read_bytes(path, _LARGEST))) as archive:
        names = {name.removesuffix(".npy") for name in archive.namelist()}
        shapes = _SHAPES | (_VIEW_SHAPES if _VIEW_THRESHOLD in names else {})
        shapes |= _ATLAS_SHAPES if _ATLAS_COUNTS in names else {}
        for name in shapes:
            if name in _OLDER and name not in names:
                found[name] = np.asarray(_OLDER[name])
                continue
            with archive.open(f"{name}.npy") as file:
                content = io.BytesIO(file.read(_LARGEST))
            np.lib.format.read_magic(content)
            shape, _, dtype = np.lib.format.read_array_header_1_0(content)
            if shape != shapes[name] or dtype.kind not in "fi":
                raise ValueError(f"{name} is {dtype} {list(shape)}")
            content.seek(0)
            found[name] = np.lib.format.read_array(content, allow_pickle=False)
            if name not in _UNKNOWN and not np.isfinite(found[name]).all():
                raise ValueError(f"{name} is not finite")
    return found

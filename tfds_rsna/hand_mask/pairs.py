"""Pairs masks with images, and reads the masks."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from boneage_jax.data.counts import describe_counts
from boneage_jax.data.file_names import image_stem, is_hidden, normal_name, relative_name
from boneage_jax.data.files import placement, resize
from boneage_jax.data.find_files import find_images
from boneage_jax.data.mask_file import read_mask
from boneage_jax.errors import InputError
from tfds_rsna.hand_mask.coco import draw_segments, read_coco

# Label Studio prefixes uploaded files with eight hex digits; a date is not such a prefix.
_UPLOAD_PREFIX = re.compile(r"^(?!(?:19|20)\d{6}-)[0-9a-f]{8}-(?=.)")


class Pair(NamedTuple):
    """An image and its mask: `read_mask()` returns bool [H, W]; `mask_name` is for messages."""

    id: str
    image: Path
    mask_name: str
    read_mask: Callable[[], np.ndarray]


def image_id(stem: str) -> str:
    """Returns the id in a file stem, without the upload prefix that Label Studio adds."""
    return _UPLOAD_PREFIX.sub("", stem)


def find_pairs(
    raw_dir: Path, *, images: str = "", masks: str = "", coco: str = "", category: str = ""
) -> tuple[list[Pair], list[str]]:
    """Pairs masks with images by file stem.

    Args:
      raw_dir: folder with images, and masks or a COCO file.
      images: folder of the images below `raw_dir`, "" to search all of it.
      masks: folder of the PNG masks, "" for the one whose name ends in `mask` or `masks`.
      coco: the JSON file, "" for the only one present if there is no folder of masks.
      category: see `read_coco`.

    Returns:
      (pairs sorted by id, lines for the user on what was found).

    Raises:
      InputError: missing or ambiguous folders, a mask without image, two masks or images of one id,
        or a damaged COCO file.
    """
    if not raw_dir.is_dir():
        raise InputError(f"raw_dir {raw_dir} is not a folder")
    if masks and coco:
        raise InputError("give either masks (a folder) or coco (a JSON file), not both")
    folder = None if coco else _mask_folder(raw_dir, masks)
    if folder is not None:
        readers, source = _png_masks(folder), folder
    else:
        source = _coco_file(raw_dir, coco)
        readers = _coco_masks(source, category)
    left_out: Counter[str] = Counter()
    root = _inside(raw_dir, images, "images")
    paths = _find_images(root, folder, readers, left_out)
    left_out["not images"] -= folder is None and source.is_relative_to(root)  # the COCO file itself
    pairs = [
        Pair(name, paths[name], mask_name, read)
        for name, (mask_name, _, read) in sorted(readers.items())
    ]
    shown = os.path.commonpath([pair.image.parent for pair in pairs])
    found = [f"{len(pairs)} masks from {source}", f"their images from {shown}"]
    if left_out := +left_out:
        found.append(f"left out {left_out.total()}: {describe_counts(left_out)}")
    return pairs, found


def fit_mask(mask: np.ndarray, size: int, fit: str = "pad") -> np.ndarray:
    """Fits a mask, bool [H, W], into a square as `fit_square` does its image; padding is not hand.

    A pixel is hand if more than half of its area is.

    Args:
      mask: bool [H, W].
      size: side of the square, pixels.
      fit: pad | stretch, see `fit_square`.

    Returns:
      bool [size, size].
    """
    height, width = mask.shape
    top, left, new_height, new_width = placement(height, width, size, fit)
    pixels = resize(mask.astype(np.float32), new_height, new_width)
    square = np.zeros((size, size), bool)
    square[top : top + new_height, left : left + new_width] = pixels > 0.5
    return square


class _Mask(NamedTuple):
    name: str
    file_name: str  # of the image, if the source names it
    read: Callable[[], np.ndarray]


def _png_masks(folder: Path) -> dict[str, _Mask]:
    masks: dict[str, _Mask] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() == ".png" and not is_hidden(path.name):
            _add(masks, image_id(image_stem(path)), _Mask(str(path), "", partial(read_mask, path)))
    if not masks:
        raise InputError(f"{folder} holds no PNG mask")
    return masks


def _coco_masks(path: Path, category: str) -> dict[str, _Mask]:
    masks: dict[str, _Mask] = {}
    found, _ = read_coco(path, category)
    for image in found:
        name = image.file_name.replace("\\", "/")
        stem = image_id(image_stem(PurePosixPath(name)))
        reader = _Mask(f"{path} ({image.file_name})", name, partial(draw_segments, image))
        _add(masks, stem, reader)
    if not masks:
        raise InputError(f"{path} has no annotation")
    return masks


def _add(masks: dict[str, _Mask], name: str, mask: _Mask) -> None:
    if name in masks:
        raise InputError(f"id {name!r} has two masks: {masks[name].name} and {mask.name}")
    masks[name] = mask


def _mask_folder(raw_dir: Path, name: str) -> Path | None:
    if name:
        return _inside(raw_dir, name, "masks")
    found = sorted(
        path
        for path in raw_dir.iterdir()
        if path.is_dir() and path.name.lower().endswith(("mask", "masks"))
    )
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise InputError(f"{raw_dir} holds several mask folders: {names}; name one with masks=NAME")
    return found[0] if found else None


def _coco_file(raw_dir: Path, name: str) -> Path:
    if name:
        return _inside(raw_dir, name, "coco")
    found = sorted(path for path in raw_dir.glob("*.json") if not path.name.startswith("."))
    if len(found) != 1:
        seen = ", ".join(path.name for path in found) or "none"
        raise InputError(
            f"{raw_dir} holds no folder of masks and not one JSON file (found {seen}); "
            "name the masks with masks=FOLDER or coco=FILE"
        )
    return found[0]


def _inside(raw_dir: Path, name: str, option: str) -> Path:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise InputError(f"{option}={name!r} leaves raw_dir; give a path below {raw_dir}")
    if not (raw_dir / path).exists():
        raise InputError(f"{option}={name!r}: {raw_dir / path} does not exist")
    return raw_dir / path


def _find_images(
    root: Path, masks: Path | None, wanted: dict[str, _Mask], left_out: Counter[str]
) -> dict[str, Path]:
    """Returns the image of each id; counts other files and images that no mask is for.

    Of folders with copies, the only one that holds all is taken.
    """
    found: dict[str, list[Path]] = defaultdict(list)
    for path in find_images(root, left_out):
        if masks is not None and masks in path.parents:
            continue
        stem = image_id(image_stem(path))
        if stem in wanted:
            found[stem].append(path)
        else:
            left_out["images without a mask"] += 1
    absent = [mask.name for name, mask in wanted.items() if name not in found]
    if absent:
        raise InputError(
            f"{len(absent)} of {len(wanted)} masks have no image of that name below {root}, "
            f"first {absent[0]}; add it, or name the folder with images=FOLDER"
        )
    left_out["copies of images"] = sum(map(len, found.values())) - len(found)
    for name, mask in wanted.items():
        called = normal_name(mask.file_name)
        exact = [path for path in found[name] if called and relative_name(path, root) == called]
        found[name] = exact or found[name]
    if any(len(paths) > 1 for paths in found.values()):
        folders_of = [{path.parent for path in paths} for paths in found.values()]
        complete = sorted(set.intersection(*folders_of))
        if len(complete) == 1:
            found = {
                name: [path for path in paths if path.parent == complete[0]]
                for name, paths in found.items()
            }
    twice = next((paths for paths in found.values() if len(paths) > 1), None)
    if twice is None:
        return {name: paths[0] for name, paths in found.items()}
    raise InputError(
        f"{twice[0]} and {twice[1]} have the same id; remove one, or name images=FOLDER"
    )

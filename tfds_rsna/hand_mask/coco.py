"""Reads hand masks from COCO JSON: polygons and run-length encodings, plain or compressed."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from boneage_jax.data.headers import check_size
from boneage_jax.errors import InputError

_OUTSIDE = 0.05  # fraction of a side by which drawing tools may overshoot the border,
_OUTSIDE_PIXELS = 5.0  # at least this; further away a polygon belongs to another image
_OUTLINE = 2_000_000  # pixels; pycocotools allocates 80 bytes for each without checking free memory


@dataclasses.dataclass(frozen=True)
class CocoImage:
    """An annotated image: file name, size, and (annotation, segmentation) pairs."""

    file_name: str
    height: int
    width: int
    segments: tuple[tuple[str, Any], ...]


def read_coco(path: Path, category: str = "") -> tuple[list[CocoImage], int]:
    """Reads the annotated images of a COCO file, including exports of Label Studio.

    Args:
      path: the JSON file.
      category: name of the category to use; needed only if there are annotations of several.

    Returns:
      (images with at least one annotation, number of images without).

    Raises:
      InputError: not JSON, no COCO structure, an annotation of an unknown image, a duplicate image,
        or several categories and none chosen.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read {path} as JSON: {error}") from error
    images = _records(content, "images", path)
    annotations = _records(content, "annotations", path)
    names = {
        str(record.get("id")): str(record.get("name", record.get("id")))
        for record in (_records(content, "categories", path) if "categories" in content else [])
    }
    chosen = _of_category(annotations, names, category, path)

    segments: dict[str, list[tuple[str, Any]]] = {}
    for number, record in enumerate(images):
        key = str(_field(record, "id", f"{path} image {number}"))
        if key in segments:
            raise InputError(f"{path} lists image id {key} twice")
        segments[key] = []
    for number, record in enumerate(chosen):
        place = f"{path} annotation {record.get('id', number)}"
        key = str(_field(record, "image_id", place))
        if key not in segments:
            raise InputError(f"{place} belongs to image {key}, which the file does not list")
        segments[key].append((place, _field(record, "segmentation", place)))

    found = []
    for record in images:
        key = str(record["id"])
        place = f"{path} image {key}"
        if segments[key]:
            height, width = (_size(record, side, place) for side in ("height", "width"))
            try:
                check_size(width, height)
            except ValueError as error:
                raise InputError(f"{place} is refused: {error}") from None
            name = str(_field(record, "file_name", place))
            found.append(CocoImage(name, height, width, tuple(segments[key])))
    return found, len(images) - len(found)


def draw_segments(image: CocoImage) -> np.ndarray:
    """Returns the union of all segmentations of an image, bool [height, width].

    Raises:
      InputError: a polygon or run-length encoding is malformed or does not fit the image.
    """
    from pycocotools.mask import frPyObjects

    mask = np.zeros((image.height, image.width), bool)
    for place, segmentation in image.segments:
        if isinstance(segmentation, dict):
            codes = [segmentation]
        elif isinstance(segmentation, list) and segmentation:
            # Some tools leave out the outer list of a single polygon.
            single = all(isinstance(number, int | float) for number in segmentation)
            polygons = [
                _vertices(polygon, mask.shape, place)
                for polygon in ([segmentation] if single else segmentation)
            ]
            drawn = frPyObjects(polygons, image.height, image.width)
            codes = [code | {"counts": code["counts"].decode()} for code in drawn]
        else:
            raise InputError(f"{place} has an empty segmentation; draw the hand or remove it")
        for code in codes:
            mask |= _draw_runs(code, mask.shape, place)
    return mask


def decode_counts(text: str) -> list[int]:
    """Decodes run lengths from COCO's compressed string.

    A variable-length code of 5 bits per character (offset 48, bit 5 continues, bit 4 of the last
    character is the sign), in which each run after the third is stored as the difference from the
    one two before. Source: `rleFrString` in maskApi.c, github.com/cocodataset/cocoapi (Piotr
    Dollár), which reads beyond the end of a truncated string and does not check that the runs fill
    the image.

    Raises:
      ValueError: an invalid character, a truncated number, or a number of 64 bits.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64:
            raise ValueError(f"character {character!r} does not occur in run lengths")
        if shift > 60:
            raise ValueError("a number in it has no end")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("the string ends within a number")
    return counts


def _draw_runs(segmentation: dict[str, Any], shape: tuple[int, ...], place: str) -> np.ndarray:
    """Draws runs, which alternate between background and hand, column by column."""
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if size != list(shape):
        raise InputError(f"{place} has run lengths of size {size}, its image is {list(shape)}")
    if isinstance(counts, str):
        try:
            counts = decode_counts(counts)
        except ValueError as error:
            raise InputError(f"{place} has damaged run lengths: {error}") from error
    if not isinstance(counts, list) or not all(type(n) is int and n >= 0 for n in counts):
        raise InputError(f"{place} has run lengths that are not whole numbers from 0 up")
    if sum(counts) != math.prod(shape):
        raise InputError(
            f"{place} has run lengths of {sum(counts)} pixels, its image has {math.prod(shape)}"
        )
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return flat.reshape(shape, order="F")


def _vertices(polygon: Any, shape: tuple[int, ...], place: str) -> np.ndarray:
    """Returns the checked corners of a polygon, float64 [2 N], x and y in pixels from top left.

    They may lie a little outside the image: pycocotools clips what it draws.
    """
    try:
        numbers = np.asarray(polygon, np.float64)
    except (TypeError, ValueError, OverflowError):
        numbers = np.empty((0, 0))
    if numbers.ndim != 1 or not np.isfinite(numbers).all():
        raise InputError(f"{place} has a polygon that is not a flat list [x, y, x, y, ...]")
    if len(numbers) % 2:
        raise InputError(f"{place} has a polygon of {len(numbers)} coordinates, an odd number")
    if len(numbers) < 6:
        raise InputError(f"{place} has a polygon of {len(numbers) // 2} corners; it needs 3")
    corners = numbers.reshape(-1, 2)
    limit = np.array([shape[1], shape[0]], np.float64)
    margin = np.maximum(_OUTSIDE * limit, _OUTSIDE_PIXELS)
    outside = ((corners < -margin) | (corners > limit + margin)).any(axis=1)
    if outside.any():
        x, y = corners[outside][0]
        raise InputError(
            f"{place} has a corner at ({x:g}, {y:g}), outside its {shape[1]}x{shape[0]} image"
        )
    length = np.abs(np.diff(corners, axis=0, append=corners[:1])).max(axis=1).sum()
    if length > _OUTLINE:
        raise InputError(
            f"{place} has a polygon with an outline of {length:,.0f} pixels; draw a simpler one"
        )
    return corners.ravel()


def _of_category(
    annotations: list[dict[str, Any]], names: dict[str, str], category: str, path: Path
) -> list[dict[str, Any]]:
    labels = [
        names.get(str(record.get("category_id")), str(record.get("category_id")))
        for record in annotations
    ]
    used = sorted(set(labels))
    if category and category not in used:
        raise InputError(
            f"{path} has no annotation of category {category!r}; it has {', '.join(used) or 'none'}"
        )
    if not category and len(used) > 1:
        raise InputError(
            f"{path} has annotations of {', '.join(used)}; choose one with category=NAME"
        )
    pairs = zip(annotations, labels, strict=True)
    return [record for record, label in pairs if label == (category or label)]


def _records(content: Any, key: str, path: Path) -> list[dict[str, Any]]:
    records = content.get(key) if isinstance(content, dict) else None
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise InputError(f"{path} is no COCO file: it has no list {key!r} of objects")
    return records


def _field(record: dict[str, Any], key: str, place: str) -> Any:
    if record.get(key) is None:
        raise InputError(f"{place} has no {key!r}")
    return record[key]


def _size(record: dict[str, Any], key: str, place: str) -> int:
    value = _field(record, key, place)
    if type(value) is not int or not 0 < value <= 65535:
        raise InputError(f"{place} has {key} {value!r}; it must be 1 to 65535 pixels")
    return value

"""Builder configs: squares of a given size, padded or stretched, with or without background."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import tensorflow_datasets as tfds

from boneage_jax.errors import InputError
from boneage_jax.inference.background_removal import Background

STRETCH = "stretch"
_WHAT = {
    "": "aspect ratio kept, padded",
    STRETCH: "height and width resized alike, whatever the aspect ratio",
    "crop": "background black, grey levels of the hand stretched, cropped to it",
    "upright": "as crop, the hand turned upright",
    "multiply": "background black",
}


class Stored(NamedTuple):
    """What the name of a config says of its images.

    Attributes:
      size: side in pixels, None for each image's own size.
      mode: how the background is removed, "" if it is kept.
      fit: pad | stretch, see `boneage_jax.data.files.fit_square`.
    """

    size: int | None
    mode: str
    fit: str


def size_configs(sizes: Sequence[str], modes: Sequence[str] = ()) -> list[tfds.core.BuilderConfig]:
    """Returns the configs SIZE ("original" keeps each image's own), SIZE-stretch and SIZE-mode."""
    squares = [size for size in sizes if size != "original"]
    kinds = [(size, "") for size in sizes]
    kinds += [(size, kind) for size in squares for kind in (STRETCH, *modes)]
    return [
        tfds.core.BuilderConfig(
            name=f"{size}-{kind}" if kind else size,
            description="Each image at its own size."
            if size == "original"
            else f"Squares of {size} pixels, {_WHAT[kind]}.",
        )
        for size, kind in kinds
    ]


def parse_config(name: str) -> Stored:
    """Parses the name of a config."""
    size, _, kind = name.partition("-")
    side = None if size == "original" else int(size)
    return Stored(side, "", kind) if kind == STRETCH else Stored(side, kind, "pad")


def name_config(name: str, *, mode: str = "", fit: str = "") -> str:
    """Returns the name of the config of the same size as `name` with another mode or fit.

    Args:
      name: SIZE, SIZE-stretch or SIZE-mode.
      mode: how masks remove the background, "" if they do not.
      fit: pad | stretch, "" for what `name` says.

    Raises:
      InputError: `name` keeps original sizes, or names something else.
    """
    size, _, given = name.partition("-")
    wanted = STRETCH if fit == STRETCH else mode
    if mode and fit == STRETCH:
        raise InputError("fit=stretch does not go with masks, which crop to the hand; drop one")
    if (wanted and given not in ("", wanted)) or (fit == "pad" and given == STRETCH):
        asked = f"mask_mode={mode}" if mode else f"fit={fit}"
        raise InputError(f"the config {name} and {asked} disagree; drop one of them")
    if wanted and size == "original":
        raise InputError(f"{name} keeps each image's own size; name one size, e.g. 256")
    return f"{size}-{wanted}" if wanted else name


def open_background(name: str, masks: str | Path) -> Background | None:
    """Returns what removes the backgrounds for a config; None for one that keeps them.

    Raises:
      InputError: masks are needed but not given, or cannot be used.
    """
    mode = parse_config(name).mode
    if not mode:
        return None
    if not masks:
        raise InputError(
            f"the config {name} is without background: give --masks=DIR, a folder of hand masks "
            "or the workdir of a U-Net"
        )
    return Background(masks, mode)

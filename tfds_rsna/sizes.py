"""Builder configs: square images of a given size, with or without background."""

from collections.abc import Sequence
from pathlib import Path

import tensorflow_datasets as tfds

from boneage_jax.errors import InputError
from boneage_jax.inference.background_removal import Background

_WHAT = {
    "crop": "background black, grey levels of the hand stretched, cropped to it",
    "upright": "as crop, the hand turned upright",
    "multiply": "background black",
}


def size_configs(sizes: Sequence[str], modes: Sequence[str] = ()) -> list[tfds.core.BuilderConfig]:
    """Returns a config per size ("original" keeps each image's own), then SIZE-MODE per mode."""
    plain = [
        tfds.core.BuilderConfig(
            name=size,
            description="Each image at its own size."
            if size == "original"
            else f"Squares of {size} pixels, aspect ratio kept, padded.",
        )
        for size in sizes
    ]
    return plain + [
        tfds.core.BuilderConfig(
            name=f"{size}-{mode}", description=f"Squares of {size} pixels, {_WHAT[mode]}."
        )
        for size in sizes
        if size != "original"
        for mode in modes
    ]


def parse_config(name: str) -> tuple[int | None, str]:
    """Parses the name of a config.

    Returns:
      (side in pixels, None for each image's own size; mode, "" if the background is kept).
    """
    size, _, mode = name.partition("-")
    return (None if size == "original" else int(size)), mode


def name_config(name: str, mode: str) -> str:
    """Returns the name of the config without background of the same size as `name`.

    Raises:
      InputError: `name` keeps original sizes, or names another mode.
    """
    size, given = parse_config(name)
    if size is None:
        raise InputError(f"{name} keeps each image's own size; masks need one size, e.g. 256")
    if given and given != mode:
        raise InputError(f"the config {name} and mask_mode={mode} disagree; drop one of them")
    return f"{size}-{mode}"


def open_background(name: str, masks: str | Path) -> Background | None:
    """Returns what removes the backgrounds for a config; None for one that keeps them.

    Raises:
      InputError: masks are needed but not given, or cannot be used.
    """
    mode = parse_config(name)[1]
    if not mode:
        return None
    if not masks:
        raise InputError(
            f"the config {name} is without background: give --masks=DIR, a folder of hand masks "
            "or the workdir of a U-Net"
        )
    return Background(masks, mode)

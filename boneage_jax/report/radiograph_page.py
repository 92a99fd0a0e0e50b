"""HTML page of one radiograph, from templates/: pictures, age and what to know of it; printable."""

import base64
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

import boneage_jax
from boneage_jax.storage.safe_write import write_text


@dataclasses.dataclass(frozen=True)
class Neighbour:
    """A reference radiograph.

    Attributes:
      name: name of its file.
      age: by the network, months.
      distance: of its features, see `boneage_jax.inference.nearest`.
      picture: uint8 [H, W].
    """

    name: str
    age: float
    distance: float
    picture: np.ndarray


@dataclasses.dataclass(frozen=True)
class RadiographPage:
    """Contents of a page.

    Attributes:
      title: name of the file.
      network: name of the network.
      age, low, high: bone age and its 95 % interval, months.
      accepted: whether the radiograph is like those of training, None if unknown.
      facts: further rows of the table: (name, value).
      notes: what a user should know.
      pictures: (caption, uint8 [H, W] or [H, W, 3] RGB).
      stress: age in months by variant of the radiograph.
      neighbours: reference radiographs with the nearest features, the nearest first.
    """

    title: str
    network: str
    age: float
    low: float
    high: float
    accepted: bool | None
    facts: Sequence[tuple[str, str]]
    notes: Sequence[str]
    pictures: Sequence[tuple[str, np.ndarray]]
    stress: Mapping[str, float]
    neighbours: Sequence[Neighbour] = ()


def write_radiograph_page(path: Path, page: RadiographPage) -> None:
    """Writes a page as one self-contained HTML file, atomically.

    Raises:
      OSError: the file cannot be written.
    """
    import jinja2

    pages = jinja2.Environment(
        loader=jinja2.PackageLoader("boneage_jax.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    pages.filters |= {"number": format, "png": _data_uri, "words": age_in_words}
    ages = list(page.stress.values())
    text = pages.get_template("radiograph.html").render(
        page=page,
        version=boneage_jax.__version__,
        spread=max(ages) - min(ages) if ages else 0.0,
    )
    write_text(path, text)


def age_in_words(months: float) -> str:
    """Returns an age as years and months, rounded to a month, e.g. `10 y 3 mo`."""
    years, rest = divmod(round(months), 12)
    return f"{years} y {rest} mo"


def _data_uri(picture: np.ndarray) -> str:
    """Returns a picture, uint8 [H, W] or [H, W, 3] RGB, as the address of an inline PNG."""
    pixels = picture if picture.ndim == 2 else picture[..., ::-1]
    content = cv2.imencode(".png", pixels)[1].tobytes()
    return f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}"

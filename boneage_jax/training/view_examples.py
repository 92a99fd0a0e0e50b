"""Draws the examples that a view network is fitted to, from radiographs as they are.

Radiographs of a data set are upright, hold one hand and fill their frame, but for a few. So what a
network should know of a view needs no label: it is what was done to the radiograph.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from boneage_jax.data.handless import KINDS, draw_handless
from boneage_jax.inference.view_network import NONE, SEVERAL, SIDE, SINGLE, TURNS

BASE = 96  # side in pixels of the radiographs that examples are drawn from
VARIANTS = 4  # of each drawn picture
_SINGLE, _SEVERAL = 0.54, 0.10  # fractions of pictures with one hand, with several
_DIAGONAL = 0.4  # fraction of pictures turned by 45 degrees before the quarter turns
_TILT = 7.0  # standard deviation of the angle around each step, degrees
_SMALL, _SMALLEST = 0.45, 0.33  # fraction of hands in a part of the picture, their smallest scale
_DRAWN = 0.6  # fraction of pictures without a hand that are drawn, not radiographs taken apart


class Examples(NamedTuple):
    """Thumbnails and what was done to the radiographs.

    Attributes:
      thumbnails: uint8 [n, 48, 48].
      turn: float32 [n, 8], fractions; between two steps of 45 degrees both have a part, and
        pictures without a hand one eighth of each.
      inverted: float32 [n], 1 if black and white were swapped; one half without a hand.
      kind: int32 [n]: SINGLE, SEVERAL or NONE.
      frame: float32 [n, 4], see `boneage_jax.inference.view_network.Outputs`.
      framed: float32 [n], 1 if the frame is known: of upright single hands.
    """

    thumbnails: np.ndarray
    turn: np.ndarray
    inverted: np.ndarray
    kind: np.ndarray
    frame: np.ndarray
    framed: np.ndarray


def draw_examples(
    radiographs: np.ndarray,
    rng: np.random.Generator,
    count: int,
    kinds: Sequence[str] = tuple(KINDS),
) -> Examples:
    """Draws pictures, and of each some variants by quarter turns and inversion, which cost nothing.

    Args:
      radiographs: uint8 [n, 96, 96].
      rng: makes all draws.
      count: number of examples, a multiple of `VARIANTS`.
      kinds: kinds of pictures without a hand, see `boneage_jax.data.handless`.
    """
    found = Examples(
        np.empty((count, SIDE, SIDE), np.uint8),
        np.full((count, TURNS), 1 / TURNS, np.float32),
        np.full(count, 0.5, np.float32),
        np.empty(count, np.int32),
        np.zeros((count, 4), np.float32),
        np.zeros(count, np.float32),
    )
    for first in range(0, count, VARIANTS):
        kind, picture, angle, frame = _draw(radiographs, rng, kinds)
        quarters = np.append(0, rng.integers(0, 4, VARIANTS - 1))
        inverted = np.append(0, rng.integers(0, 2, VARIANTS - 1))
        for at, quarter, swap in zip(
            range(first, first + VARIANTS), quarters, inverted, strict=True
        ):
            turned = np.rot90(picture, quarter)
            found.thumbnails[at] = 255 - turned if swap else turned
            found.kind[at] = kind
            if kind == NONE:
                continue
            found.inverted[at] = swap
            if kind == SINGLE:
                found.turn[at] = _shares(angle + 90 * quarter)
                found.frame[at] = frame
                found.framed[at] = quarter == 0 and abs(angle) < 3 * _TILT
    return found


def _draw(
    radiographs: np.ndarray, rng: np.random.Generator, kinds: Sequence[str]
) -> tuple[int, np.ndarray, float, np.ndarray]:
    """Draws a picture; returns its kind, the picture, the angle and the frame."""
    draw, angle, frame = rng.random(), 0.0, np.zeros(4, np.float32)
    if draw < _SINGLE:
        kind, angle = SINGLE, 45.0 * (rng.random() < _DIAGONAL) + rng.normal(0, _TILT)
        picture, frame = _place(_one(radiographs, rng), rng, angle, small=rng.random() < _SMALL)
    elif draw < _SINGLE + _SEVERAL:
        kind = SEVERAL
        picture, _ = _place(_several(radiographs, rng), rng, 0.0, small=False)
    else:
        kind = NONE
        picture = cv2.resize(
            _handless(radiographs, rng, kinds), (SIDE, SIDE), interpolation=cv2.INTER_AREA
        )
    return kind, _expose(picture, rng), angle, frame


def _shares(angle: float) -> np.ndarray:
    """Divides an angle between the two steps next to it; float32 [8]."""
    low, part = divmod(angle / 45, 1)
    shares = np.zeros(TURNS, np.float32)
    shares[int(low) % TURNS], shares[int(low + 1) % TURNS] = 1 - part, part
    return shares


def _one(radiographs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    image = radiographs[rng.integers(len(radiographs))]
    return image[:, ::-1] if rng.random() < 0.5 else image


def _several(radiographs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Joins radiographs side by side, one above the other, or exposes two on one film."""
    first, second = _one(radiographs, rng), _one(radiographs, rng)
    if rng.random() < 0.5:
        second = first if rng.random() < 0.5 else first[:, ::-1]
    which = rng.random()
    if which < 0.2:
        shift = rng.integers(-BASE // 3, BASE // 3 + 1, 2)
        return cv2.addWeighted(first, 0.5, np.roll(second, shift, (0, 1)), 0.5, 0)
    joined = np.concatenate([first, second], axis=int(which < 0.7))
    return cv2.resize(joined, (BASE, BASE), interpolation=cv2.INTER_AREA)


def _place(
    image: np.ndarray, rng: np.random.Generator, angle: float, *, small: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Turns, shrinks and moves a radiograph; returns the picture and its frame, see `Outputs`."""
    if small:
        scale = float(np.exp(rng.uniform(np.log(_SMALLEST), -0.1)))
        centre = rng.uniform(-0.5, 0.5, 2) * (1 - scale)
    else:
        scale, centre = float(np.exp(rng.uniform(-0.1, 0.1))), rng.uniform(-0.05, 0.05, 2)
    fill = _fill(image, rng)
    side = min(BASE, round(1.2 * SIDE * scale))  # shrunk by averaging; what follows interpolates
    image = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    before, after = np.exp(rng.uniform(-0.15, 0.15, 2))  # the aspect ratio is not known
    cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    linear = np.diag([after, 1 / after]) @ [[cos, sin], [-sin, cos]] @ np.diag([before, 1 / before])
    linear *= scale * SIDE / side
    offset = SIDE * (0.5 + centre) - linear @ np.full(2, side / 2)
    matrix = np.column_stack([linear, offset])
    picture = cv2.warpAffine(image, matrix, (SIDE, SIDE), borderValue=fill)
    extent = np.log(scale * np.array([before * after, 1 / (before * after)]))
    return picture, np.array([*centre, *extent], np.float32)


def _fill(image: np.ndarray, rng: np.random.Generator) -> float:
    """Draws the grey level around a radiograph: mostly that of its edges, else black or any."""
    draw = rng.random()
    if draw < 0.5:
        edges = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        return float(np.sort(edges)[len(edges) // 2])
    if draw < 0.75:
        return 0.0
    return 255.0 if draw < 0.85 else float(rng.uniform(0, 255))


def _expose(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Varies gamma, contrast, sharpness, noise, frame and markers; each of a few images only."""
    x: np.ndarray = image.astype(np.float32) / 255
    draw = rng.random(6)
    if draw[0] < 0.5:
        x = cv2.pow(x, float(np.exp(rng.uniform(-0.8, 0.8))))
    if draw[1] < 0.3:
        low, high = sorted(rng.uniform(-0.2, 1.2, 2))
        x = low + x * max(high - low, 0.15)
    if draw[2] < 0.2:
        x = cv2.GaussianBlur(x, (0, 0), rng.uniform(0.3, 1.0))
    if draw[3] < 0.3:
        x = x + rng.uniform(0, 0.06) * rng.standard_normal(x.shape, dtype=np.float32)
    if draw[4] < 0.15:
        left, top, right, bottom = rng.integers(0, 6, 4)
        grey = float(rng.integers(0, 2))
        x[:top], x[SIDE - bottom :], x[:, :left], x[:, SIDE - right :] = (grey,) * 4
    if draw[5] < 0.2:
        row, column, height, width = rng.integers((0, 0, 2, 2), (SIDE - 8, SIDE - 8, 8, 8))
        x[row : row + height, column : column + width] = rng.random()
    return np.clip(255 * x, 0, 255).astype(np.uint8)


def _handless(
    radiographs: np.ndarray, rng: np.random.Generator, kinds: Sequence[str]
) -> np.ndarray:
    """Draws a picture without a hand, or takes a radiograph apart until no hand is left."""
    if kinds and rng.random() < _DRAWN:
        return draw_handless(kinds[int(rng.integers(len(kinds)))], rng, BASE)
    return _APART[int(rng.integers(len(_APART)))](_one(radiographs, rng), rng)


def _shuffled(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Puts the tiles of an image in another order."""
    count = int(rng.integers(2, 7))
    side = BASE // count
    tiles = image[: side * count, : side * count].reshape(count, side, count, side)
    tiles = np.array(rng.permutation(tiles.swapaxes(1, 2).reshape(-1, side, side)))
    return (
        tiles.reshape(count, count, side, side).swapaxes(1, 2).reshape(side * count, side * count)
    )


def _enlarged(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cuts out a small part."""
    side = int(BASE * rng.uniform(0.1, 0.35))
    row, column = rng.integers(0, BASE - side, 2)
    return cv2.resize(image[row : row + side, column : column + side], (BASE, BASE))


def _scrambled(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Keeps the amplitude of each frequency and takes the phases of noise."""
    amplitude = np.abs(np.fft.rfft2(image))
    phase = np.angle(np.fft.rfft2(rng.standard_normal(image.shape)))
    phase[0, 0] = 0
    field = np.fft.irfft2(amplitude * np.exp(1j * phase), image.shape)
    return np.clip(field, 0, 255).astype(np.uint8)


def _swirled(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Displaces pixels by smooth noise of many pixels."""
    coarse = rng.normal(0, rng.uniform(0.12, 0.4) * BASE, (2, 4, 4)).astype(np.float32)
    y, x = np.mgrid[0:BASE, 0:BASE].astype(np.float32)
    dx, dy = (cv2.resize(field, (BASE, BASE), interpolation=cv2.INTER_CUBIC) for field in coarse)
    return cv2.remap(image, x + dx, y + dy, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


_APART: tuple[Callable[[np.ndarray, np.random.Generator], np.ndarray], ...] = (
    *(_shuffled, _enlarged, _scrambled, _swirled),
)

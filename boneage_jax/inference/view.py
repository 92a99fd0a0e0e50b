"""Puts radiographs right that are turned, inverted or small, and rejects what is no single hand."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from boneage_jax.inference.view_network import (
    SEVERAL,
    SIDE,
    SINGLE,
    TURNS,
    Outputs,
    Weights,
    apply,
    forward_flops,
    is_two_toned,
    shrunk,
    thumbnail,
    without_margins,
)

# Quarter turns and inversions under which a picture is read; both are exact and what the network
# should say of them follows from what it says of the picture (Golan & El-Yaniv 2018).
VARIANTS = ((0, False), (1, True), (2, False), (3, True))
PROPER = math.log(0.8)  # a first glance this sure is believed
SURE = math.log(0.5)  # of a hand and of a turn that is undone
SURELY_INVERTED = math.log(0.7)  # of an inversion that is undone: hardly any data set has one
SMALL = 0.72  # width and height of a frame that is cut out, in sides of the picture
TIMES = 3  # a picture is put right at most: a turn may show an inversion, then a small hand
MIN_SIDE = 32  # pixels that are left of a cut-out
_REJECTED = 0.008  # fraction of radiographs below the threshold
_LOWEST = 12  # times that fraction is measured after `put_right`
WHITE = 245  # grey level from which a margin is a scanner's

_TURNED = "turned by"
WHITE_FRAME = "white frame: cut off"
INVERTED = "inverted: grey levels swapped"
SMALL_HAND = "small hand: cut out"
SEVERAL_HANDS = "more than one hand"
NO_HAND = "no hand is recognised"
TWO_TONES = "two tones only: a mask or a drawing"


class Reading(NamedTuple):
    """Logarithms of probabilities, each [n, ...].

    Attributes:
      turn: [n, 8], turned counter-clockwise by as many times 45 degrees.
      inverted: [n, 2], as it should be or inverted.
      kind: [n, 3], one hand, several, none.
      frame: [n, 4], see `boneage_jax.inference.view_network.Outputs`; of the image as it is.
    """

    turn: np.ndarray
    inverted: np.ndarray
    kind: np.ndarray
    frame: np.ndarray

    @property
    def proper(self) -> np.ndarray:
        """Score of a single upright hand that is not inverted, [n]."""
        return self.turn[:, 0] + self.inverted[:, 0] + self.kind[:, SINGLE]


@dataclasses.dataclass(frozen=True)
class View:
    """A fitted view network.

    Attributes:
      weights: see `boneage_jax.inference.view_network`.
      threshold: least score of an image that is accepted.
    """

    weights: Weights
    threshold: float

    @classmethod
    def calibrated(cls, weights: Weights, images: Iterable[np.ndarray]) -> "View":
        """Sets the threshold so that 0.8 % of radiographs are below it.

        Args:
          weights: of a fitted network.
          images: uint8 [S, S] each, mostly not those that it was fitted to.
        """
        view = cls(weights, -math.inf)
        images = [thumbnail(image, 2 * SIDE) for image in images]  # small: there may be thousands
        scores = view.read(images).proper
        count = math.floor(_REJECTED * len(scores))
        # As `put_right` leaves them. Only the lowest matter, and few of the others change.
        for at in np.argsort(scores)[: _LOWEST * count + 1]:
            scores[at] = view.read([view.put_right(images[at])[0]]).proper[0]
        return cls(weights, float(np.sort(scores)[count]))

    @property
    def flops_per_image(self) -> int:
        """FLOPs of putting right and judging one image that is as it should be."""
        return (1 + len(VARIANTS)) * forward_flops()

    def read(self, images: Sequence[np.ndarray]) -> Reading:
        """Reads images under quarter turns and inversions, and averages.

        Args:
          images: uint8 [H, W] each, of any size.
        """
        return self._read(np.stack([thumbnail(image) for image in images]), VARIANTS)

    def _read(self, thumbnails: np.ndarray, variants: Sequence[tuple[int, bool]]) -> Reading:
        shown = [np.rot90(255 - thumbnails if s else thumbnails, q, (1, 2)) for q, s in variants]
        # At once: for one thumbnail, calls of NumPy cost more than their arithmetic.
        together = apply(self.weights, np.concatenate(shown))
        turns, inversions, kinds, frames = [], [], [], []
        for number, (quarter, swap) in enumerate(variants):
            rows = slice(number * len(thumbnails), (number + 1) * len(thumbnails))
            outputs = Outputs(*(values[rows] for values in together))
            turns.append(np.roll(_log_softmax(outputs.turn), -2 * quarter, axis=1))
            logits = np.stack([0 * outputs.inverted, outputs.inverted], axis=1)
            inversions.append(_log_softmax(logits)[:, :: -1 if swap else 1])
            kinds.append(_log_softmax(outputs.kind))
            frames.append(outputs.frame)
        mean = [np.mean(each, axis=0) for each in (turns, inversions, kinds)]
        return Reading(mean[0], mean[1], mean[2], frames[0])

    def put_right(
        self, image: np.ndarray, glance: np.ndarray | None = None
    ) -> tuple[np.ndarray, tuple[str, ...]]:
        """Undoes turns by steps of 45 degrees, inversion, white frames and wide surroundings.

        Only what the network is sure of is undone; what is wrong afterwards is for `judge`.

        Args:
          image: uint8 [H, W].
          glance: the same picture, smaller, of any proportions: it is read first, and where nothing
            is to be undone `image`, of millions of pixels, is not shrunk once more. A picture that
            is turned by 45 degrees keeps twice its pixels.

        Returns:
          (uint8 [H', W'], notes on what was done). Where nothing was, `image` itself.
        """
        whole = image
        image, notes = _without_frame(image)
        turned, swapped = 0, False
        for _ in range(TIMES):
            small = thumbnail(glance if glance is not None and image is whole else image)[None]
            seen = self._read(small, VARIANTS[:1])
            if seen.proper[0] < PROPER:
                seen = self._read(small, VARIANTS)
                if seen.kind[0, SINGLE] < SURE:
                    break
                step, swap = int(seen.turn[0].argmax()), bool(seen.inverted[0, 1] > SURELY_INVERTED)
                step = step if seen.turn[0, step] > SURE else 0
                if step or swap:
                    if step % 2 and glance is not None:  # a turn of millions of pixels takes 10 ms
                        image = shrunk(image, 2 * min(glance.shape))
                    image = turn(255 - image if swap else image, -step)
                    turned, swapped = (turned + step) % TURNS, swapped != swap
                    continue
            cut = _cut_out(image, seen.frame[0])
            if cut is None:
                break
            image, notes = cut, [*notes, SMALL_HAND]
        return image, tuple(dict.fromkeys([*_describe(turned, swapped), *notes]))

    def judge(self, squares: Sequence[np.ndarray]) -> tuple[np.ndarray, list[str]]:
        """Tells radiographs of single, upright hands, not inverted, from everything else.

        Args:
          squares: uint8 [S, S] each.

        Returns:
          (bool [n]: whether each is accepted, a note on each that is not, else "").
        """
        thumbnails = np.stack([thumbnail(square) for square in squares])
        seen, drawn = self._read(thumbnails, VARIANTS), is_two_toned(thumbnails)
        accepted = (seen.proper >= self.threshold) & ~drawn
        reasons = [
            TWO_TONES if two else SEVERAL_HANDS if kind == SEVERAL else NO_HAND
            for kind, two in zip(seen.kind.argmax(1), drawn, strict=True)
        ]
        return accepted, ["" if good else why for good, why in zip(accepted, reasons, strict=True)]


def is_turn(note: str) -> bool:
    """Returns whether a note of `View.put_right` says that a picture was turned or inverted."""
    return note.startswith(_TURNED) or note == INVERTED


def turn(image: np.ndarray, steps: int) -> np.ndarray:
    """Turns an image counter-clockwise about its centre by steps of 45 degrees.

    Quarter turns are exact. Others keep height and width, and fill the corners with the median of
    the edges.

    Args:
      image: uint8 [H, W].
      steps: number of steps, of any sign.
    """
    quarters, rest = divmod(steps % TURNS, 2)
    image = np.rot90(image, quarters)
    if not rest:
        return np.ascontiguousarray(image)
    height, width = image.shape
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), 45, 1)
    edges = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    fill = float(np.median(edges))
    return cv2.warpAffine(np.ascontiguousarray(image), matrix, (width, height), borderValue=fill)


def _cut_out(image: np.ndarray, frame: np.ndarray) -> np.ndarray | None:
    """Returns the part around a hand that is small in its picture, None if it is not."""
    inner = without_margins(image)
    x, y = frame[:2]
    width, height = np.exp(np.minimum(frame[2:], 0))
    rows, columns = inner.shape
    if max(width * columns / image.shape[1], height * rows / image.shape[0]) > SMALL:
        return None
    if max(width, height) > SMALL:  # nothing but the margins is too much
        return inner if min(inner.shape) >= MIN_SIDE else None
    top, bottom = (round(rows * (0.5 + y + half * height)) for half in (-0.5, 0.5))
    left, right = (round(columns * (0.5 + x + half * width)) for half in (-0.5, 0.5))
    cut = inner[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    return cut if min(cut.shape) >= MIN_SIDE else None


def _without_frame(image: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Cuts off white margins, as scanners leave them."""
    edges = image[0], image[-1], image[:, 0], image[:, -1]
    if all(edge.min() < WHITE for edge in edges):
        return image, []  # as almost always, without looking at millions of pixels
    inside = image < WHITE
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    if min(len(rows), len(columns)) < MIN_SIDE:
        return image, []
    cut = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return (cut, [WHITE_FRAME]) if cut.shape != image.shape else (image, [])


def _describe(turned: int, swapped: bool) -> list[str]:
    angle = min(turned, TURNS - turned) * 45
    return [f"{_TURNED} {angle} degrees: put upright"] * bool(turned) + [INVERTED] * swapped


def _log_softmax(x: np.ndarray) -> np.ndarray:
    return x - np.logaddexp.reduce(x, axis=-1, keepdims=True)

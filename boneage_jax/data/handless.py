"""Draws pictures without a hand, of kinds that radiographs are mistaken for or replaced by.

They are what a network must learn to reject: see `boneage_jax.training.fit_view`.
"""

from collections.abc import Callable

import cv2
import numpy as np

_WORDS = (
    "PATIENT",
    "LEFT",
    "AP",
    "Dr.",
    "1998",
    "kV 60",
    "Report:",
    "age",
    "normal",
    "12/04",
    "cm",
)


def draw_handless(kind: str, rng: np.random.Generator, size: int) -> np.ndarray:
    """Draws one picture without a hand.

    Args:
      kind: a key of `KINDS`.
      rng: makes all draws.
      size: side of the picture, pixels.

    Returns:
      uint8 [size, size].
    """
    return np.clip(KINDS[kind](rng, size), 0, 255).astype(np.uint8)


def _gradient(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draws a smooth surface: a plane, a bowl, or waves."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size - 0.5
    angle, waves = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 3)
    along = x * np.cos(angle) + y * np.sin(angle)
    at = rng.uniform(-0.5, 0.5, 2)
    surface = (
        along,
        np.hypot(x - at[0], y - at[1]),
        np.sin(2 * np.pi * waves * along + rng.uniform(0, 6)),
    )[rng.integers(3)]
    return _grey(surface, rng)


def _noise(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draws noise whose amplitude falls as frequency to a power of -2.5 (clouds) to 0 (white)."""
    fy, fx = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)
    frequency = np.maximum(np.hypot(fy, fx), 1 / size)
    spectrum = np.fft.rfft2(rng.standard_normal((size, size)))
    field = np.fft.irfft2(spectrum * frequency ** -rng.uniform(0, 2.5), (size, size))
    if rng.random() < 0.2:
        return _grey(field > np.quantile(field, rng.uniform(0.2, 0.8)), rng)
    return _grey(field, rng)


def _text(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draws lines of text or of digits on a plain ground."""
    paper, ink = _two_greys(rng)
    image = np.full((size, size), paper, np.uint8)
    height = rng.uniform(0.03, 0.16) * size
    for row in np.arange(height, size, 1.5 * height):
        words = " ".join(rng.choice(_WORDS, 8))
        start = (int(rng.uniform(-0.2, 0.4) * size), int(row))
        thick = max(1, round(height / 12))
        cv2.putText(image, words, start, 0, height / 24, ink, thick, cv2.LINE_AA)
    return image


def _discs(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draws filled or hollow ellipses, one on the other."""
    ground, _ = _two_greys(rng)
    image = np.full((size, size), ground, np.float32)
    for _ in range(rng.integers(1, 12)):
        at, axes = rng.uniform(0, size, 2), rng.uniform(0.03, 0.45, 2) * size
        if rng.random() < 0.5:
            axes[1] = axes[0]
        thick = -1 if rng.random() < 0.7 else rng.integers(1, max(2, size // 16))
        layer = np.zeros_like(image)
        box = (tuple(at.tolist()), tuple((2 * axes).tolist()), float(rng.uniform(0, 180)))
        cv2.ellipse(layer, box, 1.0, int(thick), cv2.LINE_AA)
        image += layer * (rng.uniform(0, 255) - image) * rng.uniform(0.4, 1)
    return image


def _bars(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draws stripes, checks or scattered rectangles at any angle."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    angle = rng.uniform(0, np.pi) if rng.random() < 0.6 else 0.0
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    first, second = rng.uniform(1, 12, 2)
    stripes = (along * first + rng.random()) % 1 < rng.uniform(0.2, 0.8)
    checks = stripes ^ ((across * second + rng.random()) % 1 < 0.5)
    which = rng.integers(3)
    if which < 2:
        return _grey((stripes, checks)[which].astype(np.float32), rng)
    ground, _ = _two_greys(rng)
    image = np.full((size, size), ground, np.float32)
    for _ in range(rng.integers(1, 12)):
        box = (
            tuple(rng.uniform(0, size, 2).tolist()),
            tuple((rng.uniform(0.03, 0.8, 2) * size).tolist()),
            float(np.rad2deg(angle)),
        )
        layer = np.zeros_like(image)
        cv2.fillPoly(layer, [np.rint(cv2.boxPoints(box)).astype(np.int32)], 1.0, cv2.LINE_AA)
        image += layer * (rng.uniform(0, 255) - image) * rng.uniform(0.4, 1)
    return image


def _bones(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draws bones that are no hand: shafts within a limb, a spine, ribs, or a skull."""
    image = np.zeros((size, size), np.float32)
    which = rng.integers(4)
    if which == 0:  # one or two long bones, perhaps with a joint
        middle, half = rng.uniform(0.4, 0.6), rng.uniform(0.12, 0.3)
        _rod(image, (middle, -0.1), (middle, 1.1), half, 0.4)
        joint = rng.uniform(0.3, 0.7) if rng.random() < 0.6 else 2.0
        for bone in np.linspace(-0.45, 0.45, rng.integers(1, 3) + 1)[:2] * half:
            width = rng.uniform(0.2, 0.35) * half
            for low, high in ((-0.1, joint - 0.02), (joint + 0.02, 1.1)):
                _rod(image, (middle + bone, low), (middle + bone, high), width, 0.5)
    elif which == 1:  # vertebrae
        count, half = rng.integers(4, 10), rng.uniform(0.05, 0.14)
        bend = rng.uniform(-0.15, 0.15)
        _rod(image, (0.5, -0.1), (0.5, 1.1), 3 * half, 0.35)
        for y in (np.arange(count) + 0.5) / count:
            x = 0.5 + bend * np.sin(np.pi * y)
            _rod(image, (x - half, y), (x + half, y), 0.35 / count, 0.6)
    elif which == 2:  # ribs on both sides of a spine
        _rod(image, (0.5, -0.1), (0.5, 1.1), 0.04, 0.6)
        drop, count = rng.uniform(-0.1, 0.25), rng.integers(5, 11)
        for y in np.linspace(0.05, 0.9, count):
            for side in (-1, 1):
                _rod(image, (0.5, y), (0.5 + 0.42 * side, y + drop), 0.3 / count / 2, 0.35)
    else:  # a skull: a shell with dark holes
        at, axes = rng.uniform(0.4, 0.6, 2) * size, rng.uniform(0.25, 0.42, 2) * size
        for scale, grey in ((1.0, 1.0), (0.93, 0.5)):
            box = (tuple(at.tolist()), tuple((2 * scale * axes).tolist()), 0.0)
            cv2.ellipse(image, box, grey, -1, cv2.LINE_AA)
        for dx in (-0.4, 0.4):
            eye = (int(at[0] + dx * axes[0]), int(at[1] + 0.2 * axes[1]))
            cv2.circle(image, eye, int(0.2 * axes.min()), 0.25, -1, cv2.LINE_AA)
    turn = cv2.getRotationMatrix2D((size / 2, size / 2), rng.uniform(0, 360), rng.uniform(0.7, 1.2))
    turned = cv2.warpAffine(image, turn, (size, size))
    blurred = cv2.GaussianBlur(turned, (0, 0), rng.uniform(0.003, 0.02) * size)
    grain = rng.normal(0, 0.02, image.shape)
    return _grey(blurred + grain, rng, upright=rng.random() < 0.8)


KINDS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "gradient": _gradient,
    "noise": _noise,
    "text": _text,
    "discs": _discs,
    "bars": _bars,
    "bones": _bones,
}


def _rod(
    image: np.ndarray,
    start: tuple[float, float],
    end: tuple[float, float],
    half: float,
    density: float,
) -> None:
    """Adds a rod to `image`; positions and half width in units of its side."""
    size = image.shape[0]
    layer = np.zeros_like(image)
    ends = [tuple(round(float(c) * size) for c in point) for point in (start, end)]
    cv2.line(layer, ends[0], ends[1], 1.0, max(1, round(2 * half * size)), cv2.LINE_AA)
    image += density * layer


def _two_greys(rng: np.random.Generator) -> tuple[float, float]:
    """Returns two grey levels at least 40 apart."""
    first = rng.uniform(0, 255)
    apart = rng.uniform(40, 255) * rng.choice((-1, 1))
    second = first + apart
    return first, float(second if 0 <= second <= 255 else np.clip(first - apart, 0, 255))


def _grey(field: np.ndarray, rng: np.random.Generator, *, upright: bool = False) -> np.ndarray:
    """Scales a field of any unit to between two grey levels."""
    field = field.astype(np.float32)
    low, high = float(field.min()), float(field.max())
    first, second = _two_greys(rng)
    if upright:
        first, second = sorted((first, second))
    return first + (second - first) * (field - low) / max(high - low, 1e-6)

"""Image acquisition: exposure, film curve, blur, noise, collimation, borders, markers.

The artefacts are those of the RSNA 2017 radiographs. `draw_exposure` makes all random draws before
the image size is used; `expose` only applies them.
"""

import dataclasses

import cv2
import numpy as np

_GRAIN = 256  # pixels of the noise field, for all image sizes
_GLYPH = 96  # pixels of the square in which a marker is drawn


@dataclasses.dataclass(frozen=True)
class Exposure:
    """One exposure; lengths are fractions of the image's side.

    Attributes:
      soft: contrast of soft tissue per unit of thickness.
      bone: contrast of bone per unit of thickness.
      gain: film curve, offset + gain * darkening ** gamma.
      offset: see `gain`.
      gamma: see `gain`.
      gradient: slope of the background along x and y (heel effect).
      grain: standard deviation of fine noise.
      mottle: standard deviation of coarse noise.
      blur: standard deviation of the focal spot's blur.
      field: corners float32 [4, 2] of the collimated field, or None; unexposed outside it.
      outside: brightness outside the field.
      border: (left, top, right, bottom) widths of a white scanning border.
      marker: text of the lead marker, "" for none.
      marker_at: centre of the marker.
      marker_size: height of the marker.
      marker_tilt: rotation of the marker in degrees.
      inverted: black bones on white.
      seed: seed of the noise fields.
    """

    soft: float
    bone: float
    gain: float
    offset: float
    gamma: float
    gradient: tuple[float, float]
    grain: float
    mottle: float
    blur: float
    field: np.ndarray | None
    outside: float
    border: tuple[float, float, float, float]
    marker: str
    marker_at: tuple[float, float]
    marker_size: float
    marker_tilt: float
    inverted: bool
    seed: int


def draw_exposure(rng: np.random.Generator, *, left: bool) -> Exposure:
    """Draws an exposure.

    Every draw is made even if its artefact is absent, so that artefacts do not affect each other.

    Args:
      rng: makes the draws.
      left: whether it is a left hand, for the marker.
    """
    centre, half = rng.normal(0.5, 0.01, 2), rng.uniform(0.44, 0.50, 2)
    turn, collimated = np.deg2rad(rng.normal(0, 4)), rng.random() < 0.35
    square = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    bordered, sides, widths = rng.random() < 0.15, rng.random(4) < 0.4, rng.uniform(0.01, 0.04, 4)
    side, below = rng.random() < 0.5, rng.random() < 0.4
    along, across = rng.uniform(0.07, 0.14), rng.uniform(0.06, 0.20)
    marked, initials = rng.random() < 0.7, "".join(rng.choice(list("ABCDEFGHJKMNPRSTW"), 2))
    return Exposure(
        soft=float(rng.uniform(0.40, 0.95)),
        bone=float(rng.uniform(0.85, 1.25)),
        gain=float(rng.uniform(0.40, 1.0)),
        offset=float(rng.uniform(0.02, 0.25) * (rng.random() < 0.7)),
        gamma=float(rng.uniform(0.8, 1.4)),
        gradient=tuple(rng.uniform(-0.08, 0.08, 2).tolist()),
        grain=float(rng.uniform(0.004, 0.020)),
        mottle=float(rng.uniform(0.0, 0.006)),
        blur=float(rng.uniform(0.0005, 0.0020)),
        field=(square @ rotation + centre).astype(np.float32) if collimated else None,
        outside=float(rng.uniform(0.0, 0.08)),
        border=tuple((widths * sides * bordered).tolist()),
        marker=("L" if left else "R") + initials if marked else "",
        marker_at=(along if side else 1 - along, 1 - across if below else across),
        marker_size=float(rng.uniform(0.08, 0.13)),
        marker_tilt=float(rng.normal(0, 8)),
        inverted=bool(rng.random() < 0.03),
        seed=int(rng.integers(2**63)),
    )


def expose(attenuation: np.ndarray, exposure: Exposure, size: int) -> np.ndarray:
    """Returns the radiograph of an attenuation map.

    Args:
      attenuation: float32 [k * size, k * size], path length times attenuation coefficient.
      exposure: acquisition parameters.
      size: side of the radiograph in pixels.

    Returns:
      uint8 [size, size].
    """
    # Beer-Lambert law: the transmitted intensity falls exponentially with attenuation.
    blur = exposure.blur * attenuation.shape[0]
    image = 1 - cv2.exp(-attenuation)
    if blur > 0.3:
        image = cv2.GaussianBlur(image, (0, 0), blur)
    image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
    image = exposure.offset + exposure.gain * (1 - exposure.offset) * cv2.pow(
        np.maximum(image, 0), exposure.gamma
    )
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    image += exposure.gradient[0] * axis[None, :] + exposure.gradient[1] * axis[:, None]
    noise = np.random.default_rng(exposure.seed)
    grain = noise.standard_normal((_GRAIN, _GRAIN), dtype=np.float32)
    mottle = noise.standard_normal((_GRAIN // 8, _GRAIN // 8), dtype=np.float32)
    shape = (size, size)
    image += exposure.grain * cv2.resize(
        grain, shape, interpolation=cv2.INTER_AREA if size < _GRAIN else cv2.INTER_LINEAR
    )
    image += exposure.mottle * cv2.resize(mottle, shape, interpolation=cv2.INTER_CUBIC)
    if exposure.field is not None:
        image = _collimate(image, exposure.field, exposure.outside)
    if exposure.marker:
        _place_marker(image, exposure)
    _add_border(image, exposure.border)
    if exposure.inverted:
        image = 1 - image
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def _collimate(image: np.ndarray, field: np.ndarray, outside: float) -> np.ndarray:
    size = image.shape[0]
    open_field = np.zeros((size, size), np.uint8)
    corners = np.rint((field * size - 0.5) * 16).astype(np.int32)
    cv2.fillConvexPoly(open_field, corners, 255, cv2.LINE_AA, 4)
    passed = open_field.astype(np.float32) / 255
    soft = cv2.GaussianBlur(passed, (0, 0), 0.004 * size + 0.2)
    # Scattered radiation leaves a pale rim along the edge of the field.
    return image * soft + outside * (1 - soft) + 0.5 * soft * (1 - soft)


def _place_marker(image: np.ndarray, exposure: Exposure) -> None:
    """Draws a lead letter above two initials on a plate into `image`."""
    glyph = np.zeros((_GLYPH, _GLYPH), np.uint8)
    cv2.rectangle(glyph, (20, 8), (76, 88), 36, -1, cv2.LINE_AA)
    cv2.putText(glyph, exposure.marker[0], (28, 58), 0, 1.9, 255, 7, cv2.LINE_AA)
    cv2.putText(glyph, exposure.marker[1:], (30, 82), 0, 0.65, 230, 2, cv2.LINE_AA)
    middle = (_GLYPH / 2, _GLYPH / 2)
    turned = cv2.warpAffine(
        glyph, cv2.getRotationMatrix2D(middle, exposure.marker_tilt, 1.0), glyph.shape
    )
    size = image.shape[0]
    side = max(4, round(exposure.marker_size * size))
    small = cv2.resize(turned, (side, side), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    left, top = (round(at * size - side / 2) for at in exposure.marker_at)
    left, top = (min(max(at, 0), size - side) for at in (left, top))
    patch = image[top : top + side, left : left + side]
    patch += small * (0.97 - patch)


def _add_border(image: np.ndarray, border: tuple[float, float, float, float]) -> None:
    left, top, right, bottom = (round(width * image.shape[0]) for width in border)
    size = image.shape[0]
    image[:, :left] = image[:, size - right :] = 0.97
    image[:top] = image[size - bottom :] = 0.97

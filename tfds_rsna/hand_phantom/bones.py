"""Draws bones as path lengths of the rays through cortical and spongy bone.

Each bone is computed in its own coordinates within its own bounding box, so the cost is
proportional to the area of the bones, not of the frame.
"""

import functools
import math
from typing import NamedTuple

import cv2
import numpy as np

from tfds_rsna.hand_phantom.pose import Canvas
from tfds_rsna.hand_phantom.skeleton import Bone, Carpal, Skeleton

_THICKNESS = 0.028  # half width of a typical bone in hand units, the unit of path lengths
_STEPS = 64  # samples of a shaft's profile


def draw_bones(skeleton: Skeleton, canvas: Canvas, trabeculae: np.ndarray) -> np.ndarray:
    """Returns the mineral that the rays cross; 1 is about a finger bone's half width of cortex.

    Args:
      skeleton: the bones.
      canvas: maps the bones to pixels.
      trabeculae: float32 [n, n] white noise, stretched over the canvas.

    Returns:
      float32 [side, side].
    """
    image = np.zeros((canvas.side, canvas.side), np.float32)
    for bone in skeleton.bones:
        _draw_bone(image, bone, canvas)
    for carpal in skeleton.carpals:
        _draw_carpal(image, carpal, canvas)
    fine = cv2.GaussianBlur(trabeculae, (0, 0), 0.6)
    texture = cv2.resize(fine, (canvas.side, canvas.side), interpolation=cv2.INTER_LINEAR)
    return image * (skeleton.density * (1 + 0.16 * texture))


class _Patch(NamedTuple):
    """The part of the canvas that a bone can touch, and the bone's own coordinates there."""

    image: np.ndarray
    along: np.ndarray
    across: np.ndarray


def _patch(
    image: np.ndarray, canvas: Canvas, origin: np.ndarray, axis: np.ndarray, box: np.ndarray
) -> _Patch | None:
    """Returns the part of the canvas around `box`, or None if it is outside.

    `box` holds corners [4, 2] in coordinates from `origin` along `axis` and across it.
    """
    frame = np.array([[axis[0], -axis[1]], [axis[1], axis[0]]])
    corners = canvas.place(origin + box @ frame.T)
    side = canvas.side
    # Numbers, not arrays: NumPy's calls cost more than such small work.
    (x0, y0), (x1, y1) = corners.min(0).tolist(), corners.max(0).tolist()
    left, top = (min(max(math.floor(v), 0), side) for v in (x0, y0))
    right, bottom = (min(max(math.ceil(v) + 1, 0), side) for v in (x1, y1))
    if right <= left or bottom <= top:
        return None
    # Pixels to hand units to the bone's own axes: two affine maps combined.
    linear = frame.T @ canvas.inverse
    offset = -linear @ canvas.matrix[:, 2] - frame.T @ origin
    x = np.arange(left, right, dtype=np.float32)
    y = np.arange(top, bottom, dtype=np.float32)[:, None]
    (ax, ay), (cx, cy) = linear.astype(np.float32)
    along = ax * x + (ay * y + np.float32(offset[0]))
    across = cx * x + (cy * y + np.float32(offset[1]))
    return _Patch(image[top:bottom, left:right], along, across)


def _draw_bone(image: np.ndarray, bone: Bone, canvas: Canvas) -> None:
    span = bone.tip - bone.base
    length = float(np.linalg.norm(span))
    half = bone.width / 2
    out = half * 1.2
    box = np.array([[-0.1 * half, -out], [-0.1 * half, out], [length, -out], [length, out]])
    patch = _patch(image, canvas, bone.base, span / length, box)
    if patch is None:
        return
    plate = bone.thickness + bone.gap  # start of the shaft
    if bone.fused < 1:
        mineral = _shaft(bone, patch, plate, length)
        if bone.epiphysis:
            mineral += _epiphysis(bone, patch)
        patch.image[...] += (1 - bone.fused) * mineral
    if bone.fused > 0:
        mineral = _shaft(bone, patch, 0.0, length)
        # A closed growth plate remains visible as a thin dense line for some years.
        line = np.exp(-(((patch.along - bone.thickness) / (0.07 * bone.width)) ** 2))
        mineral *= 1 + 0.30 * line
        patch.image[...] += bone.fused * mineral


def _shaft(bone: Bone, patch: _Patch, begin: float, end: float) -> np.ndarray:
    """Returns path lengths in a tube of cortex around spongy bone, float32 of the patch."""
    half = bone.width / 2
    place = (patch.along - np.float32(begin)) / np.float32(end - begin)
    step = _within(place * (_STEPS - 1), _STEPS - 1).astype(np.intp)
    profile = _profile(bone.kind, round(bone.waist, 2))
    outer = half * profile.width[step]
    # Ends are rounded: the metaphysis slightly, the other end like the head of a joint.
    near = _within((patch.along - begin) / (0.30 * half), 1)
    far = _within((end - patch.along) / ((1.0 if bone.kind == "distal" else 0.7) * half), 1)
    outer = outer * np.sqrt(near * (2 - near)) ** 0.5 * np.sqrt(far * (2 - far))
    inner = outer - half * bone.cortex * profile.wall[step]
    square = patch.across * patch.across
    whole = np.sqrt(np.maximum(outer * outer - square, 0))
    marrow = np.sqrt(np.maximum(np.maximum(inner, 0) ** 2 - square, 0))
    mineral = (whole - (1 - profile.inside[step]) * marrow) / _THICKNESS
    # Zone of provisional calcification: a white line where the shaft meets its growth plate.
    line = np.exp(-(((patch.along - begin) / (0.16 * half)) ** 2))
    return _flatten(mineral * (1 + 0.5 * line), half)


def _within(x: np.ndarray, most: int) -> np.ndarray:
    """Returns `np.clip(x, 0, most)` in a third of its time for a few hundred pixels."""
    return np.minimum(np.maximum(x, 0), most)


def _epiphysis(bone: Bone, patch: _Patch) -> np.ndarray:
    """Returns path lengths in an epiphysis: a round dot that widens to a plate on the shaft."""
    half = bone.width / 2
    grown = min(bone.epiphysis, 1.0)
    head = bone.kind == "metacarpal"  # a ball; the others are plates
    axis = half * bone.epiphysis * (0.92 if head else 1.0)
    thick = bone.thickness / 2 * grown ** (1.0 if head else 0.75)
    x = np.abs(patch.across / axis)
    # Closer to the shaft than to the joint, whose cartilage is thick in small children.
    centre = bone.thickness - thick
    y = (patch.along - np.float32(centre)) / np.float32(thick)
    power = 2.0 + 1.2 * grown
    inside = np.maximum(1 - x**power - y * y, 0)
    mineral = 0.50 * np.sqrt(inside) + 0.16 * (inside > 0) + 0.9 * inside * np.exp(-5 * inside)
    return _flatten(mineral * half / _THICKNESS, half)


def _draw_carpal(image: np.ndarray, carpal: Carpal, canvas: Canvas) -> None:
    tilt = np.deg2rad(carpal.tilt)
    axis = np.array([np.sin(tilt), np.cos(tilt)])
    out = 1.3 * float(carpal.axes.max())
    box = np.array([[-out, -out], [-out, out], [out, -out], [out, out]])
    patch = _patch(image, canvas, carpal.centre, axis, box)
    if patch is None:
        return
    x = patch.across / np.float32(carpal.axes[0])
    y = patch.along / np.float32(carpal.axes[1])
    x2, y2 = x * x, y * y
    radius = np.sqrt(x2 + y2) + np.float32(1e-6)
    # cos 3t and cos 4t of the polar angle, without the angle
    third = y * (y2 - 3 * x2) / radius**3
    fourth = 1 - 8 * x2 * y2 / radius**4
    inside = np.maximum(
        1 - (radius / (1 + carpal.triangular * third - carpal.square * fourth)) ** 2, 0
    )
    mineral = 0.42 * np.sqrt(inside) + 0.14 * (inside > 0) + 1.1 * inside * np.exp(-6 * inside)
    thickness = float(np.sqrt(carpal.axes.prod()))
    patch.image[...] += _flatten(mineral * (thickness / _THICKNESS), thickness)


# Half width of a shaft relative to its metaphysis: positions from the growth plate (0) to the other
# end (1), and the width there as (weight of the waist, constant).
_KNOTS: dict[str, tuple[tuple[float, ...], tuple[tuple[float, float], ...]]] = {
    "metacarpal": (
        (0, 0.12, 0.3, 0.6, 0.8, 0.95, 1),
        ((0, 1), (0, 0.92), (1, 0), (0.94, 0), (1.08, 0), (0, 1), (0, 1)),
    ),
    "proximal": (
        (0, 0.12, 0.35, 0.65, 0.85, 0.95, 1),
        ((0, 1), (0, 0.92), (1, 0), (0.95, 0), (1, 0), (0, 0.82), (0, 0.80)),
    ),
    "middle": (
        (0, 0.12, 0.35, 0.65, 0.85, 0.95, 1),
        ((0, 1), (0, 0.90), (1, 0), (0.93, 0), (1, 0), (0, 0.82), (0, 0.80)),
    ),
    "distal": (
        (0, 0.15, 0.45, 0.75, 0.90, 1),
        ((0, 1), (0, 0.78), (0.68, 0), (0.54, 0), (0, 0.58), (0, 0.56)),
    ),
    "radius": ((0, 0.05, 0.14, 0.30, 1), ((0, 1), (0, 0.92), (0, 0.70), (0, 0.52), (0, 0.50))),
    "ulna": ((0, 0.04, 0.12, 0.30, 1), ((0, 1), (0, 0.90), (0, 0.74), (0, 0.70), (0, 0.80))),
}


class _Profile(NamedTuple):
    """Profiles along a shaft, float32 [_STEPS] each.

    Half width relative to the metaphysis, thickness of the cortex relative to mid-shaft, and
    attenuation of the inside relative to cortex.
    """

    width: np.ndarray
    wall: np.ndarray
    inside: np.ndarray


@functools.cache
def _profile(kind: str, waist: float) -> _Profile:
    knots, widths = _KNOTS[kind]
    place = np.linspace(0, 1, _STEPS)
    width = np.interp(place, knots, [share * waist + constant for share, constant in widths])
    width = np.convolve(np.pad(width, 4, mode="edge"), np.full(9, 1 / 9), mode="valid")
    # Marrow fills the mid-shaft; the ends are spongy bone in a thin shell. Only the distal end of
    # the forearm is in the image.
    middle = (0.10, 1.0, 1.0) if kind in ("radius", "ulna") else (0.32, 0.68, 1.0)
    far = 1.0 if kind in ("radius", "ulna") else 0.2
    wall = np.interp(place, (0, *middle), (0.2, 1, 1, far))
    inside = 0.06 + 0.34 * (1 - (wall - 0.2) / 0.8)
    return _Profile(*(values.astype(np.float32) for values in (width, wall, inside)))


def _flatten(mineral: np.ndarray, half: float) -> np.ndarray:
    """Scales the mineral of flat bones, whose depth grows more slowly than their width."""
    return mineral * np.float32((_THICKNESS / half) ** 0.55)

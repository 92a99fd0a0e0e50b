"""From a skeleton to a radiograph with its hand mask.

Every random number is drawn before the image size enters, so that the same hand is drawn at every
size. Drawing happens at twice the size and is averaged down.
"""

import dataclasses
import functools
import itertools
import math
from typing import NamedTuple

import cv2
import numpy as np

from tfds_rsna.hand_phantom.skeleton import MONTHS, Bone, Skeleton, grow_skeleton

_FIELD = 256  # pixels of the noise fields, whatever the size of the image
_SHIFT = 4  # bits of sub-pixel position that OpenCV draws with
_SPLITS = {"train": 0, "validation": 1, "test": 2}


class Phantom(NamedTuple):
    """image uint8 [S, S], mask uint8 [S, S] (0/1), bone age in months, sex."""

    image: np.ndarray
    mask: np.ndarray
    bone_age: float
    male: bool


@dataclasses.dataclass(frozen=True)
class _Pose:
    """Where the hand lies in the frame of side 1, and how thick its soft tissue is."""

    scale: float
    angle: float
    x: float
    y: float
    mirrored: bool
    tissue: float

    def place(self, points: np.ndarray, side: int) -> np.ndarray:
        """Hand units [n, 2] to pixels of an image of `side`."""
        turn = np.deg2rad(self.angle)
        cos, sin = np.cos(turn) * self.scale * side, np.sin(turn) * self.scale * side
        flip = -1.0 if self.mirrored else 1.0
        matrix = np.array([[cos * flip, sin * flip], [sin, -cos]])
        origin = np.array([self.x, self.y]) * side - np.array([0.0, 0.42]) @ matrix
        return points @ matrix + origin


def make_phantom(index: int, size: int, split: str = "train") -> Phantom:
    """Phantom number `index` of a split.

    Args:
      index: 0, 1, 2 ...; the same index is the same hand at every size.
      size: side in pixels.
      split: train, validation or test.

    Returns:
      See `Phantom`. The same arguments give the same result in every process.
    """
    rng = np.random.default_rng([_SPLITS[split], index])
    male = bool(rng.random() < 0.5)
    age = float(rng.uniform(*MONTHS))
    return draw_hand(age, male, size, rng)


def draw_hand(age: float, male: bool, size: int, rng: np.random.Generator) -> Phantom:
    """A hand of a given bone age (months) and sex; `rng` draws all the rest."""
    skeleton = grow_skeleton(age, male, rng)
    pose = _Pose(
        scale=float(rng.uniform(0.66, 0.94)),
        angle=float(rng.normal(0, 6)),
        x=float(rng.normal(0.5, 0.03)),
        y=float(rng.normal(0.50, 0.03)),
        mirrored=bool(rng.random() < 0.3),
        tissue=float((1.09 if male else 0.94) * rng.normal(1.0, 0.05)),
    )
    fields = rng.normal(size=(3, _FIELD, _FIELD)).astype(np.float32)
    settings = rng.random(24)

    side = 2 * size
    mask = _draw_tissue(skeleton, pose, side)
    tissue = _thickness(mask)
    bone = _draw_bones(skeleton, pose, side)
    texture = cv2.resize(cv2.GaussianBlur(fields[0], (0, 0), 1.2), (side, side))
    # Beer-Lambert: the darkening of the film falls exponentially with what the rays cross.
    attenuation = (0.55 + 0.5 * settings[0]) * tissue
    attenuation += skeleton.density * bone * (1.35 + 0.25 * texture)
    image = 1 - np.exp(-attenuation * (0.8 + 0.6 * settings[1]))
    image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
    image = _expose(image, settings, fields, size)
    small = cv2.resize(mask, (size, size), interpolation=cv2.INTER_AREA)
    return Phantom(image, (small >= 128).astype(np.uint8), age, male)


def _fill(canvas: np.ndarray, points: np.ndarray, value: float) -> None:
    fixed = np.round(points * (1 << _SHIFT)).astype(np.int32)
    cv2.fillPoly(canvas, [fixed], value, cv2.LINE_AA, _SHIFT)


def _draw_tissue(skeleton: Skeleton, pose: _Pose, side: int) -> np.ndarray:
    """Fingers as thick polylines, the palm as a polygon, the forearm; uint8 0 ... 255."""
    mask = np.zeros((side, side), np.uint8)
    unit = pose.scale * side
    for finger, path in enumerate(skeleton.fingers):
        radius = (0.058, 0.049, 0.050, 0.048, 0.044)[finger] * pose.tissue
        tip = path[-1] + (path[-1] - path[-2]) / np.linalg.norm(path[-1] - path[-2]) * 0.012
        joints = np.concatenate([path[:-1], tip[None]])
        thick = np.linspace(1.12, 0.86, len(joints)) * radius
        placed = pose.place(joints, side)
        for (a, b), (ra, rb) in zip(
            itertools.pairwise(placed),
            itertools.pairwise(thick),
            strict=True,
        ):
            along = (b - a) / max(float(np.linalg.norm(b - a)), 1e-6)
            normal = np.array([-along[1], along[0]])
            corners = [a + normal * ra * unit, b + normal * rb * unit]
            corners += [b - normal * rb * unit, a - normal * ra * unit]
            _fill(mask, np.array(corners), 255)
            centre = tuple(int(v) for v in np.round(b * (1 << _SHIFT)))
            radius_px = round(rb * unit * (1 << _SHIFT))
            cv2.circle(mask, centre, radius_px, 255, -1, cv2.LINE_AA, _SHIFT)
    wide = pose.tissue
    knuckles = [path[1] for path in skeleton.fingers]
    edge = np.array([0.050 * wide, 0.0])
    palm = np.array(
        [
            knuckles[1] + edge,
            skeleton.fingers[0][1] + edge * 0.3,
            np.array([0.165 * wide, 0.10]),
            np.array([0.125 * wide, -0.02]),
            np.array([0.115 * wide, -0.80]),
            np.array([-0.125 * wide, -0.80]),
            np.array([-0.125 * wide, -0.02]),
            np.array([-0.155 * wide, 0.12]),
            knuckles[4] - edge,
            knuckles[3],
            knuckles[2],
        ]
    )
    _fill(mask, pose.place(palm, side), 255)
    return mask


def _thickness(mask: np.ndarray) -> np.ndarray:
    """Soft tissue is round in section: thickness rises steeply from the edge, then levels off."""
    inside = cv2.distanceTransform((mask > 127).astype(np.uint8), cv2.DIST_L2, 3)
    depth = np.minimum(inside / (0.05 * mask.shape[0]), 1.0)
    blurred = cv2.GaussianBlur(np.sqrt(1 - (1 - depth) ** 2), (0, 0), mask.shape[0] / 200)
    return blurred.astype(np.float32)


def _draw_bones(skeleton: Skeleton, pose: _Pose, side: int) -> np.ndarray:
    """Projected bone: cortex bright, medulla less so, growth plates dark; float32 about 0 ... 1."""
    bone = np.zeros((side, side), np.float32)
    unit = pose.scale * side
    for part in skeleton.bones:
        _add_tubular(bone, part, skeleton.cortex, pose, side)
    for carpal in skeleton.carpals:
        outline = _ellipse(carpal.centre, carpal.axes, carpal.tilt)
        core = _ellipse(carpal.centre, carpal.axes * (1 - 0.8 * skeleton.cortex), carpal.tilt)
        _add(bone, pose.place(outline, side), 0.80)
        _add(bone, pose.place(core, side), -0.22)
    return cv2.GaussianBlur(bone, (0, 0), max(unit / 260, 0.5))


def _add_tubular(bone: np.ndarray, part: Bone, cortex: float, pose: _Pose, side: int) -> None:
    axis = part.end - part.start
    length = float(np.linalg.norm(axis))
    along = axis / length
    across = np.array([-along[1], along[0]])
    half = part.width / 2
    thick = part.width * 0.42  # of the epiphysis, along the bone
    plate = thick + part.gap  # where the shaft begins

    def outline(begin: float, shrink: float) -> np.ndarray:
        t, profile = _profile(part.kind)
        place = begin + t * ((length - begin) * (1.0 if shrink == 1 else 0.985))
        spine = part.start + along * place
        beside = across * (half * shrink * profile)
        return np.concatenate([spine + beside, (spine - beside)[::-1]])

    _add(bone, pose.place(outline(plate, 1.0), side), 0.92)
    _add(bone, pose.place(outline(plate + 0.1 * half, 1 - 1.9 * cortex), side), -0.40)
    if part.epiphysis:
        centre = part.start + along * thick * 0.5
        grown = min(part.epiphysis, 1.0)
        axes = np.array([half * part.epiphysis, thick * 0.5 * (0.55 + 0.45 * grown)])
        tilt = math.degrees(math.atan2(across[1], across[0]))
        shape = _ellipse(centre, axes, tilt, power=0.6)
        _add(bone, pose.place(shape, side), 0.88)
        core = _ellipse(centre, axes * (1 - 0.9 * cortex), tilt, power=0.6)
        _add(bone, pose.place(core, side), -0.24)
    if part.fused:
        corners = [
            part.start + along * place + across * half * 0.92 * sign
            for place, sign in (
                (thick * 0.75, 1),
                (plate + 0.15 * half, 1),
                (plate + 0.15 * half, -1),
                (thick * 0.75, -1),
            )
        ]
        _add(bone, pose.place(np.array(corners), side), 0.62 * part.fused)


@functools.cache
def _profile(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Places along a shaft (0 at the growth plate) and its half width there, each [20, 1]."""
    t = np.linspace(0, 1, 20)[:, None]
    waist = 0.70 if kind in ("radius", "ulna") else 0.68
    flare = waist + (1 - waist) * np.abs(2 * t - 1) ** 2.6
    end = 0.66 if kind == "distal" else 0.92  # the distal phalanx ends in a narrow tuft
    narrow = np.where(t > 0.5, 1 + (end - 1) * (2 * t - 1), 1.0)
    head = np.sqrt(np.clip(1 - np.clip((t - 0.93) / 0.08, 0, 1) ** 2, 0.12, 1))
    return t, flare * narrow * head


@functools.cache
def _unit_ellipse(power: float) -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    circle = np.stack([np.cos(t), np.sin(t)], -1)
    return np.sign(circle) * np.abs(circle) ** power


def _ellipse(centre: np.ndarray, axes: np.ndarray, tilt: float, power: float = 0.85) -> np.ndarray:
    """A superellipse, [24, 2]; a lower power is more of a rectangle."""
    cos, sin = math.cos(math.radians(tilt)), math.sin(math.radians(tilt))
    turn = np.array([[cos * axes[0], sin * axes[0]], [-sin * axes[1], cos * axes[1]]])
    return centre + _unit_ellipse(power) @ turn


def _add(canvas: np.ndarray, points: np.ndarray, value: float) -> None:
    """Adds a filled polygon; only its bounding box is touched."""
    side = canvas.shape[0]
    (left, top), (right, bottom) = points.min(0).tolist(), points.max(0).tolist()
    left, top = max(int(left) - 1, 0), max(int(top) - 1, 0)
    right, bottom = min(int(right) + 3, side), min(int(bottom) + 3, side)
    if right <= left or bottom <= top:
        return
    patch = np.zeros((bottom - top, right - left), np.uint8)
    _fill(patch, points - (left, top), 255)
    canvas[top:bottom, left:right] += patch * np.float32(value / 255)


def _expose(image: np.ndarray, settings: np.ndarray, fields: np.ndarray, size: int) -> np.ndarray:
    """Scatter, exposure gradient, film curve, noise, collimation, border, marker, inversion."""
    s = settings
    image = image * (0.65 + 0.35 * s[2]) + 0.02 + 0.10 * s[3]
    axis = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    gradient = (s[4] - 0.5) * axis[None, :] + (s[5] - 0.5) * axis[:, None]
    image = image * (1 + 0.35 * gradient) + 0.10 * gradient + 0.03
    image = np.clip(image, 0, 1) ** (0.75 + 0.6 * s[6])
    fine = cv2.resize(fields[1], (size, size), interpolation=cv2.INTER_LINEAR)
    coarse = cv2.resize(cv2.GaussianBlur(fields[2], (0, 0), 4), (size, size))
    image = image + (0.006 + 0.014 * s[7]) * fine + 0.06 * s[8] * coarse
    if s[9] < 0.35:  # collimation: the rays do not reach the rim of the plate
        near, far = int(size * 0.06 * s[10]), size - int(size * 0.06 * s[11])
        shadow = np.full_like(image, 0.0)
        shadow[near:far, near:far] = 1.0
        image = image * cv2.GaussianBlur(shadow, (0, 0), size / 250 + 0.3)
    if s[12] < 0.12:  # a white scanning border
        rim = 1 + int(size * 0.04 * s[13])
        edge = (slice(None), slice(0, rim)) if s[14] < 0.5 else (slice(0, rim), slice(None))
        image[edge] = 0.95
    if s[15] < 0.6:  # laterality marker
        where = (int(size * (0.04 + 0.12 * s[16])), int(size * (0.10 + 0.15 * s[17])))
        if s[18] < 0.5:
            where = (size - where[0] - int(0.08 * size), where[1])
        letter = "L" if s[19] < 0.8 else "R"
        scale, thickness = size / 330, max(1, round(size / 130))
        font = cv2.FONT_HERSHEY_SIMPLEX
        drawn = np.zeros((size, size), np.uint8)  # OpenCV writes on 8-bit images only
        cv2.putText(drawn, letter, where, font, scale, 255, thickness, cv2.LINE_AA)
        image = np.maximum(image, 0.93 / 255 * drawn)
    if s[20] < 0.04:
        image = 1 - image
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)

"""Position and shape of the bones of one hand; lengths in hand units, angles in degrees.

The wrist joint is the origin, the middle finger points along +y, the thumb is at +x. One unit is
about 25 cm in an adult; the tip of the middle finger is at 0.83. Bone lengths and widths follow the
adult means of Garn, Hertzog, Poznanski & Nagy 1972, Radiology 105:375-381 (metacarpophalangeal
length), rounded; as fractions of the hand they hold at every age except as described in
`grow_skeleton`. A phantom is a teaching model of the milestones in `maturity.py`, not an anatomical
atlas.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from tfds_rsna.hand_phantom import maturity


class _Outline(NamedTuple):
    """A grown carpal bone: centre, half axes, tilt, and two harmonics that deform the ellipse."""

    x: float
    y: float
    across: float
    along: float
    tilt: float
    triangular: float  # weight of cos 3t
    square: float  # weight of cos 4t


_CARPALS = {
    "capitate": _Outline(0.012, 0.112, 0.031, 0.049, 3, 0.05, 0.10),
    "hamate": _Outline(-0.053, 0.108, 0.034, 0.042, -14, 0.16, 0.02),
    "triquetrum": _Outline(-0.062, 0.050, 0.027, 0.028, -30, 0.12, 0.04),
    "lunate": _Outline(-0.002, 0.036, 0.032, 0.027, 8, -0.08, 0.08),
    "trapezium": _Outline(0.107, 0.112, 0.028, 0.033, 35, 0.05, 0.14),
    "scaphoid": _Outline(0.064, 0.056, 0.025, 0.046, 38, -0.10, 0.02),
    "trapezoid": _Outline(0.062, 0.133, 0.023, 0.027, 10, -0.08, 0.10),
    "pisiform": _Outline(-0.072, 0.040, 0.015, 0.019, 0, 0.0, 0.0),
    "sesamoid": _Outline(0.0, 0.0, 0.010, 0.012, 20, 0.0, 0.0),
}


class _Ray(NamedTuple):
    """Base of a metacarpal, its direction from +y towards the thumb, and the bone lengths."""

    x: float
    y: float
    angle: float
    lengths: tuple[float, ...]


_RAYS = (
    _Ray(0.130, 0.140, 43.0, (0.180, 0.128, 0.088)),  # thumb: metacarpal, proximal, distal
    _Ray(0.074, 0.163, 9.0, (0.268, 0.160, 0.096, 0.070)),
    _Ray(0.018, 0.164, 1.0, (0.258, 0.178, 0.118, 0.074)),
    _Ray(-0.035, 0.156, -7.0, (0.230, 0.166, 0.112, 0.075)),
    _Ray(-0.080, 0.142, -16.0, (0.214, 0.132, 0.080, 0.066)),
)
_WIDTHS = {
    "metacarpal": 0.060,
    "proximal": 0.057,
    "middle": 0.048,
    "distal": 0.038,
    "radius": 0.128,
    "ulna": 0.066,
}
_EPIPHYSIS_THICKNESS = {  # relative to the width of the bone
    "metacarpal": 0.66,
    "proximal": 0.32,
    "middle": 0.31,
    "distal": 0.32,
    "radius": 0.33,
    "ulna": 0.36,
}


@dataclasses.dataclass(frozen=True)
class Bone:
    """One tubular bone; its growth plate is near `base`.

    Attributes:
      kind: a key of `maturity.EPIPHYSES`.
      base: float64 [2], end of the bone with the growth plate.
      tip: float64 [2], the other end.
      width: width of the metaphysis.
      epiphysis: width of the epiphysis relative to the metaphysis, 0 before it appears.
      thickness: space for the grown epiphysis along the bone.
      gap: thickness of the open growth plate.
      fused: 0 open ... 1 closed.
      cortex: fraction of the width at mid-shaft that is cortex.
      waist: width at mid-shaft relative to the metaphysis.
    """

    kind: str
    base: np.ndarray
    tip: np.ndarray
    width: float
    epiphysis: float
    thickness: float
    gap: float
    fused: float
    cortex: float
    waist: float


@dataclasses.dataclass(frozen=True)
class Carpal:
    """The ossified part of a carpal bone or sesamoid: an ellipse deformed by two harmonics.

    Attributes:
      name: a key of `maturity.CARPAL_ONSET`.
      centre: float64 [2].
      axes: float64 [2], half axes, along x and y at a tilt of 0.
      tilt: degrees from +y towards the thumb.
      triangular: weight of the third harmonic of the outline.
      square: weight of the fourth harmonic of the outline.
    """

    name: str
    centre: np.ndarray
    axes: np.ndarray
    tilt: float
    triangular: float
    square: float


@dataclasses.dataclass(frozen=True)
class Skeleton:
    """One hand: its bones, its carpal centres, and what the soft tissue needs.

    Attributes:
      bones: the 19 bones of the fingers, radius and ulna.
      carpals: carpal centres that have begun to ossify.
      density: mineral density relative to a median adult.
      fingers: per finger the joints from metacarpal base to tip, float64 [n, 2], thumb first.
      tissue: thickness of the soft tissue relative to a median adult.
    """

    bones: list[Bone]
    carpals: list[Carpal]
    density: float
    fingers: list[np.ndarray]
    tissue: float


@dataclasses.dataclass(frozen=True)
class _Growth:
    """What all bones of one hand share."""

    age: float
    male: bool
    pace: float  # this hand's milestones relative to the median
    robust: float
    cortex: float
    rng: np.random.Generator

    def shift(self) -> float:
        """Returns one bone's milestones relative to the median: the hand's pace times its own."""
        return self.pace * float(np.clip(self.rng.normal(1.0, 0.025), 0.94, 1.06))

    def bone(self, kind: str, base: np.ndarray, tip: np.ndarray, stout: float = 1.0) -> Bone:
        grown, shift = maturity.growth(self.age, self.male), self.shift()
        # The bones of small children are plump, hardly waisted, and far apart.
        width = _WIDTHS[kind] * stout * self.robust * (1.14 - 0.14 * grown)
        width *= float(self.rng.normal(1.0, 0.015))
        epiphysis = maturity.epiphysis_width(kind, self.age, self.male, shift)
        return Bone(
            kind,
            base,
            tip,
            width,
            epiphysis * float(self.rng.normal(1.0, 0.025)),
            width * _EPIPHYSIS_THICKNESS[kind] * (0.72 + 0.28 * grown),
            width * maturity.plate_gap(kind, self.age, self.male, shift),
            maturity.fusion(kind, self.age, self.male, shift),
            self.cortex,
            0.86 - 0.24 * grown,
        )


def grow_skeleton(age: float, male: bool, rng: np.random.Generator) -> Skeleton:
    """Grows the skeleton of one hand.

    Girls and boys of the same stage differ weakly, as in reality: boys' bones are wider for their
    length with a thicker cortex, and their ring finger is longer than their index finger (the 2D:4D
    ratio: Manning et al. 1998, Hum Reprod 13:3000-3004; exaggerated here).

    Args:
      age: bone age in months.
      male: sex.
      rng: draws the biological variation: milestones shift by a few per cent, bones differ in
        length and width, fingers spread and bend.
    """
    grown = maturity.growth(age, male)
    shared = _Growth(
        age,
        male,
        pace=float(np.clip(rng.normal(1.0, 0.02), 0.95, 1.05)),
        robust=(1.10 if male else 0.92) * float(rng.normal(1.0, 0.035)),
        cortex=maturity.cortical_fraction(age, male) * float(rng.normal(1.0, 0.04)),
        rng=rng,
    )
    fingers, bones = _grow_fingers(shared)
    lean = float(rng.normal(0.0, 0.03))  # the forearm need not continue the middle finger
    for kind, x, y in (("radius", 0.046, 0.004), ("ulna", -0.068, -0.016)):
        base = np.array([x, y])
        foot = np.array([x * 1.25 + lean, -1.30])
        bones.append(shared.bone(kind, base, foot))
    return Skeleton(
        bones,
        _grow_carpals(shared, fingers[0][1]),
        density=(0.58 + 0.42 * grown) * float(rng.normal(1.0, 0.05)),
        fingers=fingers,
        tissue=(1.07 if male else 0.94) * (1.16 - 0.16 * grown) * float(rng.normal(1.0, 0.07)),
    )


def _grow_fingers(shared: _Growth) -> tuple[list[np.ndarray], list[Bone]]:
    rng, grown = shared.rng, maturity.growth(shared.age, shared.male)
    spread = float(rng.uniform(0.45, 1.55))
    thumb = float(rng.normal(0.0, 6.0))
    lengthen = rng.normal(1.0, 0.012, 5)
    ratio = (0.028 if shared.male else -0.012) + rng.normal(0.0, 0.010)
    lengthen[3] += ratio / 2
    lengthen[1] -= ratio / 2
    joint = 0.030 - 0.021 * grown  # cartilage between two bones, dark on the radiograph
    fingers, bones = [], []
    for finger, ray in enumerate(_RAYS):
        kinds = ["metacarpal", "proximal", "middle", "distal"]
        if finger == 0:
            kinds.remove("middle")
        angle = ray.angle + (thumb if finger == 0 else 0.0)
        # Metacarpals hardly move; the fingers fan out from their heads.
        fan = ray.angle * (spread - 1.0) * (0.9 if finger else 0.0) + rng.normal(0, 1.5)
        at = np.array([ray.x, ray.y])
        path = [at]
        for kind, length in zip(kinds, ray.lengths, strict=True):
            if kind == "proximal":
                angle += fan
            heading = np.deg2rad(angle)
            direction = np.array([np.sin(heading), np.cos(heading)])
            # Fingers of small children are short relative to the palm.
            short = 1.0 if kind == "metacarpal" else 0.90 + 0.10 * grown
            end = at + direction * length * lengthen[finger] * short
            near, far = at + direction * joint / 2, end - direction * joint / 2
            if kind == "distal":
                far = end
            # The growth plate is at the base of the phalanges and of the thumb's metacarpal, and
            # at the head of the other metacarpals.
            if kind == "metacarpal" and finger:
                near, far = far, near
            stout = (1.12, 1.0, 1.0, 0.95, 0.86)[finger]
            bones.append(shared.bone(kind, near, far, stout))
            at = end
            path.append(at)
            angle += float(rng.normal(0, 1.8))
        fingers.append(np.array(path))
    return fingers, bones


def _grow_carpals(shared: _Growth, thumb_joint: np.ndarray) -> list[Carpal]:
    rng, carpals = shared.rng, []
    for name, outline in _CARPALS.items():
        size = maturity.carpal_size(name, shared.age, shared.male, shared.shift())
        vary = rng.normal(size=5)  # drawn for absent bones too, so that older hands share the draws
        if not size:
            continue
        centre = np.array([outline.x, outline.y]) + 0.002 * vary[:2]
        if name == "sesamoid":  # on the palmar side of the head of the thumb's metacarpal
            centre = thumb_joint + np.array([-0.030, 0.002])
        stout = 1.0 + 0.35 * (shared.robust - 1.0)
        axes = (
            1.07 * np.array([outline.across, outline.along]) * stout * size * (1 + 0.02 * vary[2:4])
        )
        # Centres start as round dots and develop their outline as they grow (Greulich & Pyle 1959).
        axes = axes * size + np.sqrt(axes.prod()) * (1 - size)
        tilt = outline.tilt + 4.0 * float(vary[4])
        bent = size**2
        carpals.append(
            Carpal(name, centre, axes, tilt, outline.triangular * bent, outline.square * bent)
        )
    return carpals

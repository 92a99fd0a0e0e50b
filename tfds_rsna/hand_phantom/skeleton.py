"""The hand skeleton as a function of bone age and sex.

Ages are in months; lengths in hand units (wrist joint to middle fingertip of a grown hand is about
one unit). The milestones are medians rounded from the literature:

- onset of ossification: Garn, Rohmann & Silverman 1967, Med Radiogr Photogr 43:45-66;
- epiphyseal width and fusion: Greulich & Pyle 1959 (Stanford University Press); Gilsanz & Ratib
  2005, Hand Bone Age (Springer), whose stages name the epiphysis as wide as its metaphysis, then
  capping it, then fusing: distal phalanges first, then proximal and middle phalanges and
  metacarpals, the radius last;
- cortical thickening of the second metacarpal: Garn 1970, The Earlier Gain and the Later Loss of
  Cortical Bone (Thomas).

A phantom is a teaching model of these milestones, no anatomical atlas.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

MONTHS = (6.0, 216.0)  # bone ages of phantoms, drawn uniformly


class Milestones(NamedTuple):
    """Months at which something happens, for (boys, girls)."""

    boys: float
    girls: float

    def of(self, male: bool) -> float:
        return self.boys if male else self.girls


# Onset of ossification of the carpal bones, and of the sesamoid of the thumb.
CARPAL_ONSET = {
    "capitate": Milestones(3, 3),
    "hamate": Milestones(4, 3),
    "triquetrum": Milestones(29, 21),
    "lunate": Milestones(49, 32),
    "trapezium": Milestones(71, 49),
    "trapezoid": Milestones(75, 50),
    "scaphoid": Milestones(68, 50),
    "sesamoid": Milestones(153, 129),
}
CARPAL_FULL = Milestones(168, 144)  # carpal bones have their grown shape

# Secondary ossification centres: (appearance, beginning of fusion, fused).
EPIPHYSES = {
    "proximal": (Milestones(17, 11), Milestones(174, 152), Milestones(194, 170)),
    "middle": (Milestones(22, 13), Milestones(174, 154), Milestones(196, 174)),
    "distal": (Milestones(25, 16), Milestones(162, 140), Milestones(180, 156)),
    "metacarpal": (Milestones(22, 15), Milestones(176, 156), Milestones(198, 176)),
    "radius": (Milestones(13, 10), Milestones(192, 174), Milestones(216, 204)),
    "ulna": (Milestones(82, 68), Milestones(190, 172), Milestones(212, 200)),
}
EPIPHYSIS_AS_WIDE = Milestones(120, 96)  # as wide as the metaphysis
EPIPHYSIS_CAPS = Milestones(162, 138)  # overlaps its edges

# Outline of the carpal bones in the grown hand: centre (x, y), half axes, tilt in degrees.
CARPALS = {
    "capitate": (0.012, 0.105, 0.034, 0.050, 5),
    "hamate": (-0.045, 0.100, 0.034, 0.042, -20),
    "triquetrum": (-0.072, 0.050, 0.027, 0.030, -30),
    "lunate": (-0.018, 0.035, 0.036, 0.027, -10),
    "scaphoid": (0.050, 0.045, 0.032, 0.045, -35),
    "trapezium": (0.098, 0.098, 0.031, 0.034, -30),
    "trapezoid": (0.062, 0.112, 0.025, 0.030, 0),
    "sesamoid": (0.180, 0.235, 0.010, 0.012, 20),
}


class Ray(NamedTuple):
    """Metacarpal base, direction in degrees towards the thumb, and bone lengths of one finger."""

    x: float
    y: float
    angle: float
    lengths: tuple[float, ...]


RAYS = (
    Ray(0.125, 0.130, 42.0, (0.185, 0.135, 0.095)),  # thumb: metacarpal, proximal, distal
    Ray(0.070, 0.165, 9.0, (0.270, 0.165, 0.098, 0.072)),
    Ray(0.015, 0.170, 1.0, (0.258, 0.182, 0.118, 0.078)),
    Ray(-0.037, 0.162, -7.0, (0.232, 0.170, 0.112, 0.078)),
    Ray(-0.080, 0.145, -16.0, (0.212, 0.135, 0.080, 0.068)),
)
_WIDTHS = {"metacarpal": 0.050, "proximal": 0.048, "middle": 0.040, "distal": 0.032}


@dataclasses.dataclass(frozen=True)
class Bone:
    """One tubular bone and its growth plate.

    Attributes:
      kind: a key of `EPIPHYSES`.
      start, end: [2], the joints it spans; the growth plate lies at `start`.
      width: of the shaft's ends.
      epiphysis: width of the epiphysis over that of the metaphysis, 0 before it appears.
      gap: width of the open growth plate.
      fused: 0 open ... 1 closed.
      finger: 0 thumb ... 4 little finger, -1 for the forearm.
    """

    kind: str
    start: np.ndarray
    end: np.ndarray
    width: float
    epiphysis: float
    gap: float
    fused: float
    finger: int


class Carpal(NamedTuple):
    """An ossified part of a carpal bone: ellipse by centre [2], half axes [2], tilt in degrees."""

    name: str
    centre: np.ndarray
    axes: np.ndarray
    tilt: float


@dataclasses.dataclass(frozen=True)
class Skeleton:
    """Bones, carpal centres, the share of a bone's width that is cortex, and fingers' paths."""

    bones: list[Bone]
    carpals: list[Carpal]
    cortex: float
    density: float
    fingers: list[np.ndarray]  # joints from metacarpal base to tip, each [n, 2]


def carpal_size(name: str, age: float, male: bool, shift: float = 1.0) -> float:
    """Linear size of a carpal centre over its grown size: 0 before its onset, 1 when grown."""
    onset = CARPAL_ONSET[name].of(male) * shift
    if age < onset:
        return 0.0
    full = CARPAL_FULL.of(male)
    part = min((age - onset) / max(full - onset, 1.0), 1.0)
    return float(0.3 + 0.7 * part**0.6)


def epiphysis_width(kind: str, age: float, male: bool, shift: float = 1.0) -> float:
    """Width of an epiphysis over that of its metaphysis; 0 before it appears."""
    onset = EPIPHYSES[kind][0].of(male) * shift
    if age < onset:
        return 0.0
    wide, caps = EPIPHYSIS_AS_WIDE.of(male) * shift, EPIPHYSIS_CAPS.of(male) * shift
    return float(np.interp(age, [onset, max(wide, onset + 24), caps + 24], [0.32, 1.0, 1.12]))


def fusion(kind: str, age: float, male: bool, shift: float = 1.0) -> float:
    """0 while the growth plate is open, 1 once it is closed."""
    _, begin, end = EPIPHYSES[kind]
    return float(np.interp(age, [begin.of(male) * shift, end.of(male) * shift], [0.0, 1.0]))


def grow_skeleton(age: float, male: bool, rng: np.random.Generator) -> Skeleton:
    """The skeleton of one hand.

    Args:
      age: bone age in months.
      male: sex.
      rng: draws the biological variation: each milestone shifts by a few per cent, bones differ
        in length and width, fingers spread and bend.

    Returns:
      Bones in hand units, wrist joint at the origin, fingers up, thumb at positive x.
    """
    grown = float(np.clip((age - 6) / 190, 0, 1))
    # Boys' bones are more robust and their ring finger is longer than their index finger.
    robust = (1.10 if male else 0.92) * rng.normal(1, 0.035)
    ring = (0.03 if male else -0.01) + rng.normal(0, 0.012)
    slender = 1.22 - 0.22 * grown  # a small child's bones are plump
    joint = 0.026 - 0.016 * grown  # unossified cartilage between the bones
    cortex = (0.17 + 0.13 * grown) * rng.normal(1, 0.06)
    density = (0.62 + 0.38 * grown) * rng.normal(1, 0.05)
    spread = rng.normal(1.0, 0.35)
    lengthen = rng.normal(1.0, 0.02, 5)
    lengthen[3] += ring
    bones: list[Bone] = []
    fingers: list[np.ndarray] = []

    def shift() -> float:
        return float(np.clip(rng.normal(1, 0.035), 0.9, 1.1))

    maturity = {kind: shift() for kind in EPIPHYSES}

    def bone(kind: str, start: np.ndarray, end: np.ndarray, width: float, finger: int) -> Bone:
        moved = maturity[kind] * float(np.clip(rng.normal(1, 0.012), 0.97, 1.03))
        return Bone(
            kind,
            start,
            end,
            width,
            epiphysis_width(kind, age, male, moved) * float(rng.normal(1, 0.03)),
            width * (0.17 - 0.08 * grown),
            fusion(kind, age, male, moved),
            finger,
        )

    for finger, ray in enumerate(RAYS):
        angle = ray.angle * (0.7 + 0.3 * spread if finger else 1.0) + rng.normal(0, 2.0)
        kinds = ("metacarpal", "proximal", "middle", "distal")
        if finger == 0:
            kinds = ("metacarpal", "proximal", "distal")
        at = np.array([ray.x, ray.y])
        path = [at]
        bend = rng.normal(0, 2.5)
        for kind, length in zip(kinds, ray.lengths, strict=True):
            # Fingers of small children are short beside the palm.
            scale = lengthen[finger] * (1 if kind == "metacarpal" else 0.9 + 0.1 * grown)
            heading = np.deg2rad(angle)
            direction = np.array([np.sin(heading), np.cos(heading)])
            end = at + direction * length * scale
            width = _WIDTHS[kind] * robust * slender * (1.12 if finger == 0 else 1.0)
            width *= 0.9 if finger == 4 else 1.0
            head, base = end - direction * joint / 2, at + direction * joint / 2
            # The growth plate is at the base of phalanges and of the thumb's metacarpal, and at
            # the head of the other metacarpals.
            flipped = kind == "metacarpal" and finger > 0
            first, last = (head, base) if flipped else (base, head)
            bones.append(bone(kind, first, last, width, finger))
            at = end
            path.append(at)
            angle += bend
            bend = rng.normal(0, 2.0)
        fingers.append(np.array(path))
    for kind, x, width in (("radius", 0.042, 0.115), ("ulna", -0.062, 0.075)):
        top = np.array([x, -0.012 if kind == "radius" else -0.03])
        foot = np.array([x * 0.75, -0.75])
        bones.append(bone(kind, top, foot, width * robust * (0.8 + 0.2 * grown), -1))
    carpals = []
    for name, (x, y, a, b, tilt) in CARPALS.items():
        size = carpal_size(name, age, male, shift())
        if size:
            centre = np.array([x, y]) + rng.normal(0, 0.002, 2)
            if name == "sesamoid":  # beside the head of the thumb's metacarpal
                centre = fingers[0][1] + np.array([-0.028, -0.012])
            axes = np.array([a, b]) * size * robust * rng.normal(1, 0.02, 2)
            carpals.append(Carpal(name, centre, axes, float(tilt + rng.normal(0, 6))))
    return Skeleton(bones, carpals, float(cortex), float(density), fingers)

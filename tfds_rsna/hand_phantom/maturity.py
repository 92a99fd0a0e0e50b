"""Skeletal maturity by bone age and sex: milestones in months, and curves through them.

The tables hold approximate population medians in months for (boys, girls). They determine the order
and pace of a phantom's growth and are no reference for reading radiographs. They follow:

- onset of ossification: Garn, Rohmann & Silverman 1967, Med Radiogr Photogr 43:45-66, the median
  of their percentiles; the pisiform, which they omit, after Gilsanz & Ratib 2005;
- width of the epiphysis relative to its metaphysis, and fusion of the growth plate: the standards
  of Greulich & Pyle 1959, and the stages of Gilsanz & Ratib 2005, Hand Bone Age (Springer):
  epiphyses as wide as the metaphysis before puberty, capping it in puberty, then fusing, distal
  phalanges first, proximal and middle phalanges and metacarpals next, ulna and radius last;
- cortical thickness: Garn 1970, The Earlier Gain and the Later Loss of Cortical Bone: the cortex
  of the second metacarpal grows faster than its width, in boys for longer.
"""

from typing import NamedTuple

import numpy as np

MONTHS = (6.0, 216.0)  # range of the bone ages of phantoms, drawn uniformly


class Milestone(NamedTuple):
    """Months at which half of the boys, and half of the girls, have reached a stage."""

    boys: float
    girls: float

    def of(self, male: bool) -> float:
        return self.boys if male else self.girls


class Epiphysis(NamedTuple):
    """Appearance of a secondary ossification centre, first and last month of its fusion."""

    onset: Milestone
    fuses: Milestone
    fused: Milestone


CARPAL_ONSET = {
    "capitate": Milestone(3, 2),
    "hamate": Milestone(4, 2),
    "triquetrum": Milestone(29, 21),
    "lunate": Milestone(49, 31),
    "trapezium": Milestone(70, 49),
    "scaphoid": Milestone(68, 49),
    "trapezoid": Milestone(75, 50),
    "pisiform": Milestone(132, 108),
    "sesamoid": Milestone(153, 129),  # of the thumb's adductor
}
CARPAL_GROWN = Milestone(168, 144)  # carpal bones have their adult size and outline

# Garn gives an onset per finger; these are the medians over the fingers for each kind of bone.
EPIPHYSES = {
    "proximal": Epiphysis(Milestone(17, 11), Milestone(183, 158), Milestone(202, 178)),
    "middle": Epiphysis(Milestone(25, 16), Milestone(183, 159), Milestone(203, 179)),
    "distal": Epiphysis(Milestone(29, 18), Milestone(174, 151), Milestone(192, 168)),
    "metacarpal": Epiphysis(Milestone(24, 15), Milestone(184, 160), Milestone(204, 181)),
    "radius": Epiphysis(Milestone(13, 10), Milestone(194, 174), Milestone(226, 206)),
    "ulna": Epiphysis(Milestone(85, 64), Milestone(190, 168), Milestone(216, 198)),
}
AS_WIDE = Milestone(114, 88)  # the epiphysis is as wide as its metaphysis
CAPPING = Milestone(168, 142)  # the epiphysis overlaps the edges of its metaphysis

GROWN = Milestone(204, 180)  # the bones have adult proportions


def carpal_size(name: str, age: float, male: bool, shift: float = 1.0) -> float:
    """Returns the width of a carpal centre relative to the adult: 0 before onset, 1 when grown.

    Args:
      name: a key of `CARPAL_ONSET`.
      age: bone age in months.
      male: sex.
      shift: this hand's milestones relative to the median.
    """
    onset, grown = CARPAL_ONSET[name].of(male) * shift, CARPAL_GROWN.of(male) * shift
    if age < onset:
        return 0.0
    growing = max(grown - onset, 24.0)  # a late centre still needs two years to grow
    return 0.25 + 0.75 * min((age - onset) / growing, 1.0) ** 0.6


def epiphysis_width(kind: str, age: float, male: bool, shift: float = 1.0) -> float:
    """Returns the width of an epiphysis relative to its metaphysis; 0 before it appears."""
    onset = EPIPHYSES[kind].onset.of(male) * shift
    if age < onset:
        return 0.0
    as_wide = max(AS_WIDE.of(male) * shift, onset + 24.0)
    capping = max(CAPPING.of(male) * shift, as_wide + 24.0)
    return float(np.interp(age, [onset, as_wide, capping], [0.30, 1.0, 1.12]))


def plate_gap(kind: str, age: float, male: bool, shift: float = 1.0) -> float:
    """Returns the thickness of the growth plate relative to the bone's width; 0 once closed."""
    stages = EPIPHYSES[kind]
    begin = stages.fuses.of(male) * shift
    return float(np.interp(age, [6.0, begin], [0.20, 0.06])) * (1 - fusion(kind, age, male, shift))


def fusion(kind: str, age: float, male: bool, shift: float = 1.0) -> float:
    """Returns 0 while the growth plate is open, rising to 1 once bone has replaced it."""
    stages = EPIPHYSES[kind]
    ends = [stages.fuses.of(male) * shift, stages.fused.of(male) * shift]
    return float(np.interp(age, ends, [0.0, 1.0]))


def growth(age: float, male: bool) -> float:
    """Returns the progress of the proportions from the first months (0) to the adult (1)."""
    return float(np.clip(age / GROWN.of(male), 0.0, 1.0))


def cortical_fraction(age: float, male: bool) -> float:
    """Returns the fraction of a metacarpal's width at mid-shaft that is cortex (both walls)."""
    return 0.32 + (0.24 if male else 0.22) * growth(age, male)

"""The phases of a run: ranges of steps with one image size and one trained part each.

Two settings create phases: `config.finetune.head_first` trains the heads alone at first, and
`config.progressive` starts on smaller images (Howard 2018; Touvron et al. 2019, arXiv:1906.06423;
Tan & Le 2021, arXiv:2104.00298). Each phase has its own compiled step.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

from ml_collections import ConfigDict

from boneage_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Stretch:
    """What a phase trains: images of `shape` pixels; only the heads, or all trainable parts."""

    shape: tuple[int, int]
    heads_only: bool


@dataclasses.dataclass(frozen=True)
class Phase:
    """One phase: the updates from `start` up to but not including `stop`."""

    stretch: Stretch
    start: int
    stop: int


def parse_progressive(
    config: ConfigDict, shape: tuple[int, int]
) -> list[tuple[tuple[int, int], float]]:
    """Parses `config.progressive` into (height and width, fraction of the steps), in order.

    The sizes are heights; widths follow in the proportion of `shape`.

    Args:
      config: the whole config.
      shape: height and width in pixels of what the network reads in the end.

    Raises:
      InputError: not lists of numbers, lists of different lengths, sizes that do not rise to the
        network's height, or fractions that do not add up to 1.
    """
    texts = config.progressive.sizes, config.progressive.fractions
    if not any(texts):
        return [(shape, 1.0)]
    try:
        sizes = [int(x) for x in texts[0].split(",")]
        fractions = [float(x) for x in texts[1].split(",")]
    except ValueError:
        raise InputError(
            f"config.progressive.sizes={texts[0]!r} and .fractions={texts[1]!r} must be lists such "
            "as 128,192 and 0.5,0.5"
        ) from None
    if len(sizes) != len(fractions) or any(not 0 < f <= 1 for f in fractions):
        raise InputError(
            f"config.progressive.fractions={texts[1]!r} must hold a fraction above 0 for each of "
            f"sizes={texts[0]!r}"
        )
    height, width = shape
    if sizes != sorted(set(sizes)) or sizes[-1] != height or sizes[0] < 32:
        raise InputError(
            f"config.progressive.sizes={texts[0]!r} must rise from at least 32 to the height that "
            f"the network reads, {height}"
        )
    if not math.isclose(math.fsum(fractions), 1.0, abs_tol=1e-6):
        raise InputError(f"config.progressive.fractions={texts[1]!r} must add up to 1")
    shapes = [(size, round(size * width / height)) for size in sizes]
    return list(zip(shapes, fractions, strict=True))


def plan(config: ConfigDict, shape: tuple[int, int], total_steps: int) -> list[Phase]:
    """Returns the phases of a run of `total_steps` updates, without empty ones.

    Raises:
      InputError: see `parse_progressive`.
    """
    sizes = parse_progressive(config, shape)
    heads_until = round(config.finetune.head_first * total_steps)
    ends, total = [], 0.0
    for _, fraction in sizes:
        total += fraction
        ends.append(round(min(total, 1.0) * total_steps))
    cuts = sorted({0, heads_until, total_steps, *ends})
    phases = []
    for start, stop in itertools.pairwise(cuts):
        size = next(size for (size, _), end in zip(sizes, ends, strict=True) if start < end)
        phases.append(Phase(Stretch(size, start < heads_until), start, stop))
    return phases


def steps_within(
    budget: int,
    plan_of: Callable[[int], Sequence[Phase]],
    cost: Callable[[Stretch], int],
) -> int:
    """Returns the largest number of steps whose phases cost at most `budget` FLOPs, 0 if none.

    Args:
      budget: FLOPs.
      plan_of: returns the phases of a number of steps.
      cost: returns the FLOPs of one step of a stretch.
    """

    def price(steps: int) -> int:
        return sum((p.stop - p.start) * cost(p.stretch) for p in plan_of(steps))

    low, high = 0, 1
    while price(high) <= budget:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if price(middle) <= budget else (low, middle)
    # Rounded fractions can make a run that is a step or two longer cheaper; not searched for.
    return low

"""Times of repeated calls: warm-up outside the clock, medians with quartiles.

A call must itself wait for its result (`jax.block_until_ready`), for JAX returns before a device is
done.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Clock = Callable[[], float]
_MOST = 1000  # repetitions of a call, however short it is


@dataclasses.dataclass(frozen=True)
class Summary:
    """Median and quartiles of `n` samples, in their unit."""

    median: float
    low: float
    high: float
    n: int


def summarize(samples: Sequence[float]) -> Summary:
    """Median, 25 % and 75 % quantile (interpolated linearly) of at least one sample."""
    low, median, high = np.quantile(np.asarray(samples, np.float64), [0.25, 0.5, 0.75])
    return Summary(float(median), float(low), float(high), len(samples))


def measure(
    call: Callable[[], Any],
    *,
    repetitions: int,
    min_seconds: float = 0.0,
    warmup: int = 1,
    clock: Clock = time.perf_counter,
) -> list[float]:
    """Seconds of each timed call of `call`.

    Args:
      call: waits for its own result.
      repetitions: timed calls at least.
      min_seconds: timed calls go on until they have taken so long in all.
      warmup: calls before that.
      clock: seconds.
    """
    times = alternate(
        {"call": call},
        repetitions=repetitions,
        min_seconds=min_seconds,
        warmup=warmup,
        clock=clock,
    )
    return times["call"]


def alternate(
    calls: Mapping[str, Callable[[], Any]],
    *,
    repetitions: int,
    min_seconds: float = 0.0,
    warmup: int = 1,
    clock: Clock = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each timed call, where calls that are compared take turns.

    What drifts in the meantime (temperature, other processes) then meets all of them alike. Each
    round begins with another call, so that none always follows the same one. Arguments as of
    `measure`; `min_seconds` is that of every call.
    """
    for call in calls.values():
        for _ in range(warmup):
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for round_number in range(_MOST):
        first = round_number % len(names)
        for name in names[first:] + names[:first]:
            began = clock()
            calls[name]()
            times[name].append(clock() - began)
        enough = round_number + 1 >= repetitions
        if enough and all(sum(taken) >= min_seconds for taken in times.values()):
            break
    return times


def paired_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Summary:
    """Median and quartiles of the ratios round by round, of two lists of equal length."""
    return summarize([a / b for a, b in zip(numerator, denominator, strict=True)])

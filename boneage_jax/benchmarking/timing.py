"""Times repeated calls: warm-up outside the clock, medians with quartiles.

A call must wait for its own result (`jax.block_until_ready`), since JAX returns before the device
has finished.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Clock = Callable[[], float]
_MOST = 1000  # maximum repetitions, however short the call


@dataclasses.dataclass(frozen=True)
class Summary:
    """Median and quartiles of `n` samples, in their unit."""

    median: float
    low: float
    high: float
    n: int


def summarize(samples: Sequence[float]) -> Summary:
    """Returns the median and the 25 % and 75 % quantiles (linear interpolation) of the samples."""
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
    """Returns the seconds of each timed call of `call`.

    Args:
      call: waits for its own result.
      repetitions: minimum number of timed calls.
      min_seconds: minimum total seconds of the timed calls.
      warmup: untimed calls before those.
      clock: returns seconds.
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
    """Returns the seconds of each timed call, with the calls to compare taking turns.

    Drift (temperature, other processes) then affects all of them alike. Each round starts with
    another call, so that no call always follows the same one. Arguments as for `measure`;
    `min_seconds` applies to each call.
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
    """Returns the median and quartiles of the pairwise ratios of two lists of equal length."""
    return summarize([a / b for a, b in zip(numerator, denominator, strict=True)])

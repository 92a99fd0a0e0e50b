"""Rounds in which contenders take turns, and the table and files of what they took."""

import csv
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from benchmarks.provenance import write_provenance
from boneage_jax.benchmarking.timing import paired_ratio, summarize


class Timed(Protocol):
    """Anything that times so many units of work."""

    name: str
    facts: dict[str, Any]

    def time(self, steps: int) -> float: ...


def take_turns(
    contenders: Sequence[Timed], rounds: int, steps: int, pause: float = 0.5
) -> dict[str, list[float]]:
    """Seconds per step of each contender in each round; each round begins with another one.

    Args:
      contenders: ready ones.
      rounds: how many.
      steps: of one contender at a time.
      pause: seconds between contenders, in which threads of the last one go to sleep.
    """
    times: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for number in range(rounds):
        first = number % len(contenders)
        for contender in [*contenders[first:], *contenders[:first]]:
            time.sleep(pause)
            times[contender.name].append(contender.time(steps) / steps)
        print(
            f"round {number + 1}: "
            + ", ".join(f"{name} {taken[-1] * 1e3:.4g} ms" for name, taken in times.items()),
            flush=True,
        )
    return times


def summary_rows(times: Mapping[str, Sequence[float]], images: int) -> list[dict[str, Any]]:
    """A row per contender; `first_over_this` is how many times as fast the first one is.

    The ratio is taken round by round (peer's seconds over those of the first contender), then its
    median and quartiles.
    """
    ours = next(iter(times))
    rows = []
    for name, seconds in times.items():
        spread, ratio = summarize(seconds), paired_ratio(seconds, times[ours])
        rows.append(
            {
                "contender": name,
                "rounds": spread.n,
                "images_per_second": images / spread.median,
                "images_per_second_low": images / spread.high,
                "images_per_second_high": images / spread.low,
                "first_over_this": ratio.median,
                "first_over_this_low": ratio.low,
                "first_over_this_high": ratio.high,
            }
        )
    return rows


def print_summary(rows: Iterable[Mapping[str, Any]]) -> None:
    """The table on the screen."""
    print(f"{'contender':<32}{'images/s':>10}{'quartiles':>18}{'first is faster by':>20}")
    for row in rows:
        spread = f"{row['images_per_second_low']:.4g}-{row['images_per_second_high']:.4g}"
        ratio = (
            f"{row['first_over_this']:.3f} "
            f"({row['first_over_this_low']:.3f}-{row['first_over_this_high']:.3f})"
        )
        print(f"{row['contender']:<32}{row['images_per_second']:>10.4g}{spread:>18}{ratio:>24}")


def write_rounds(
    output: Path,
    times: Mapping[str, Sequence[float]],
    images: int,
    settings: Mapping[str, Any],
    summary: Sequence[Mapping[str, Any]],
    **facts: Any,
) -> None:
    """Writes every round to `output` (CSV); its provenance with `summary` beside it (JSON)."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["round", "contender", "seconds_per_step", "images_per_second"])
        for name, taken in times.items():
            for number, seconds in enumerate(taken):
                writer.writerow([number, name, f"{seconds:.6g}", f"{images / seconds:.6g}"])
    write_provenance(output, settings, **facts, summary=list(summary))

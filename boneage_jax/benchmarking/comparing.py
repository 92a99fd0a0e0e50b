"""Compares two benchmarks of the same machine: what became slower or faster by more than noise.

The rule: a line is slower (or needs more memory) if its median has grown by more than the tolerance
AND its lower quartile is above the old upper quartile; faster if both hold the other way round. The
tolerance is `bench.tolerance` (5 %), and three times that for lines of fewer than five repetitions,
whose quartiles are unreliable. Anything else is noise.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from boneage_jax.benchmarking.result import KEY
from boneage_jax.errors import InputError

_FEW = 5  # repetitions
_MACHINE = ("platform", "device", "devices", "cpu_cores")


@dataclasses.dataclass(frozen=True)
class Change:
    """The change of a line that both benchmarks have.

    Attributes:
      label: case, name and the settings that identify the line.
      ratio: new median over old median.
      verdict: slower | faster | same.
      tolerance: the tolerance that was applied, as a fraction.
    """

    label: str
    ratio: float
    verdict: str
    tolerance: float


def load_benchmark(path: Path) -> dict[str, Any]:
    """Reads a benchmark.json.

    Raises:
      InputError: the file does not exist, is not JSON, or is not a benchmark.
    """
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"--compare={path}: there is no such file") from None
    except (OSError, ValueError) as error:
        raise InputError(f"--compare={path} cannot be read as JSON: {error}") from error
    try:
        _ = [content["hardware"][key] for key in _MACHINE]
        rows = content["results"]
        for row in rows:
            _ = [row[key] for key in KEY]
            numbers = [row[key] for key in ("median", "low", "high", "n")]
            whole = all(isinstance(x, int | float) and not isinstance(x, bool) for x in numbers)
            if not whole or not numbers[1] <= numbers[0] <= numbers[2] or numbers[0] <= 0:
                raise ValueError
        if not rows:
            raise ValueError
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError(
            f"--compare={path} is not a benchmark.json, or a damaged one: give a file that "
            "python -m boneage_jax.benchmark has written"
        ) from None
    return content


def check_machine(old: Mapping[str, Any], hardware: Mapping[str, Any]) -> None:
    """Checks that `old` was measured on a machine like `hardware`.

    Raises:
      InputError: platform, device, number of devices or of CPU cores differ.
    """
    for key in _MACHINE:
        if old["hardware"][key] != hardware[key]:
            raise InputError(
                f"--compare: the old benchmark has {key} {old['hardware'][key]!r}, this machine "
                f"{hardware[key]!r}; only benchmarks of one kind of machine can be compared"
            )


def compare(old: Mapping[str, Any], new: Mapping[str, Any], tolerance: float) -> list[Change]:
    """Returns the changes of all lines that both benchmarks have, in the order of `new`.

    Args:
      old: contents of the old benchmark.json.
      new: contents of the new benchmark.json.
      tolerance: fraction of the median below which a change always counts as noise.
    """
    before = {_key(row): row for row in old["results"]}
    return [
        _judge(before[_key(row)], row, tolerance) for row in new["results"] if _key(row) in before
    ]


def comparison_lines(
    old: Mapping[str, Any], new: Mapping[str, Any], tolerance: float
) -> tuple[list[str], bool]:
    """Returns a comparison as text lines, and whether a line became slower."""
    changes = compare(old, new, tolerance)
    lines = [f"against the benchmark of {old.get('date', 'an unknown date')}:"]
    for name in ("flops_per_second", "bytes_per_second"):
        then, now = old.get("peaks", {}).get(name), new.get("peaks", {}).get(name)
        if then and now and abs(now / then - 1) > tolerance:
            what = "matrix product" if name.startswith("flops") else "memory bandwidth"
            lines.append(f"  note: the machine's own {what} is {now / then:.3f} x what it was")
    for verdict in ("slower", "faster", "same"):
        lines += [
            f"  {verdict:<7}{change.ratio:7.3f} x  {change.label}"
            for change in changes
            if change.verdict == verdict
        ]
    missing = len(old["results"]) - len(changes)
    if missing:
        lines.append(f"  {missing} lines of the old benchmark were not measured now")
    if not changes:
        lines.append("  nothing in common")
    lines.append(
        f"  rule: beyond {tolerance:.0%} of the median ({3 * tolerance:.0%} where n < {_FEW}) and "
        "quartiles apart"
    )
    return lines, any(change.verdict == "slower" for change in changes)


def _judge(old: Mapping[str, Any], new: Mapping[str, Any], tolerance: float) -> Change:
    allowed = tolerance * (3 if min(old["n"], new["n"]) < _FEW else 1)
    ratio = new["median"] / old["median"]
    verdict = "same"
    if ratio > 1 + allowed and new["low"] > old["high"]:
        verdict = "slower"
    elif ratio < 1 / (1 + allowed) and new["high"] < old["low"]:
        verdict = "faster"
    return Change(_label(new), ratio, verdict, allowed)


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[key] for key in KEY)


def _label(row: Mapping[str, Any]) -> str:
    return (
        f"{row['case']}: {row['name']}, {row['model']} {row['image_size']} px, "
        f"batch {row['batch_size']}, {row['dtype']}, {row['parallel']} on {row['devices']}"
    )

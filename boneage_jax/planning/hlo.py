"""Collectives of a compiled program, read from its HLO text.

XLA counts the FLOPs and bytes of a program but not the traffic between its chips. The HLO text
names every collective with the shapes it moves. A loop body counts once per known trip.
"""

import collections
import dataclasses
import math
import re

_COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_WIDTHS = {"pred": 1, "bf16": 2, "c64": 8, "c128": 16}
_SHAPE = re.compile(r"\b(pred|bf16|[sufc]\d+(?:e\w+)?)\[([\d,]*)\]")
# `ENTRY %main.1 (...) -> ... {` or `%region_0.2 (...) -> ... {`, at the start of a line.
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?)\s([a-z][a-z\-]*)\((.*)$")
_CALLED = re.compile(r"(body|condition|calls|to_apply)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=([^,\s]+))")
TRIPS = re.compile(r'"known_trip_count":\s*\{"n":\s*"?(\d+)')


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind in one execution of a program.

    Attributes:
      kind: HLO opcode, e.g. all-reduce.
      count: number of executions.
      payload: bytes per chip of the operands or the results, whichever is larger, summed over all
        executions.
    """

    kind: str
    count: int
    payload: int

    def wire_bytes(self, chips: int) -> float:
        """Returns the bytes that one chip sends if `chips` of them form a ring.

        For a payload of B bytes and n chips: 2 (n - 1) / n B for an all-reduce (Patarasuk & Yuan,
        2009); half of that for its two halves (all-gather, reduce-scatter) and for an all-to-all;
        B for a permutation.
        """
        if chips == 1:
            return 0.0
        if self.kind.startswith("collective"):
            return float(self.payload)
        rounds = 2 if self.kind == "all-reduce" else 1
        return rounds * (chips - 1) / chips * self.payload


@dataclasses.dataclass
class _Computation:
    collectives: list[tuple[str, int]]  # (kind, payload)
    calls: list[tuple[str, int]]  # (computation, times)


def collectives(text: str) -> list[Collective]:
    """Returns the collectives that a program executes on each chip, summed per kind.

    Args:
      text: HLO of a compiled program, from `jax.stages.Compiled.as_text`.

    Returns:
      One entry per kind, largest payload first. A loop of unknown length counts once; all branches
      of a conditional count.

    Raises:
      ValueError: the text has no entry computation.
    """
    computations, entry = _parse(text)
    if entry is None:
        raise ValueError("collectives: the text holds no ENTRY computation; is it HLO?")
    counts: collections.Counter[str] = collections.Counter()
    payloads: collections.Counter[str] = collections.Counter()
    for name, times in _times_run(computations, entry).items():
        for kind, payload in computations[name].collectives:
            counts[kind] += times
            payloads[kind] += times * payload
    found = [Collective(kind, counts[kind], payloads[kind]) for kind in counts]
    return sorted(found, key=lambda collective: -collective.payload)


def shape_bytes(text: str) -> int:
    """Returns the bytes of all arrays in an HLO shape, e.g. 32 for '(f32[2,3]{1,0}, bf16[4])'."""
    return sum(
        math.prod(int(n) for n in sizes.split(",") if n) * dtype_bytes(dtype)
        for dtype, sizes in _SHAPE.findall(text)
    )


def dtype_bytes(dtype: str) -> int:
    """Returns the bytes of one element, e.g. 2 for 'bf16'."""
    if dtype in _WIDTHS:
        return _WIDTHS[dtype]
    bits = re.match(r"[a-z]+(\d+)", dtype)
    return max(int(bits[1]) // 8, 1) if bits else 1


def _parse(text: str) -> tuple[dict[str, _Computation], str | None]:
    """Returns the computations by name, and the name of the entry computation."""
    computations: dict[str, _Computation] = {}
    entry, current = None, _Computation([], [])
    sizes: dict[str, int] = {}  # bytes of each instruction's result
    for line in text.splitlines():
        start = COMPUTATION.match(line)
        if start:
            current = computations[start[2]] = _Computation([], [])
            entry = start[2] if start[1] else entry
            continue
        instruction = _INSTRUCTION.match(line)
        if not instruction:
            continue
        name, shape, opcode, rest = instruction.groups()
        sizes[name] = shape_bytes(shape)
        kind = opcode.removesuffix("-start")
        if kind in _COLLECTIVES:
            operands = rest.partition(")")[0]
            sent = shape_bytes(operands) or sum(
                sizes.get(word, 0) for word in re.findall(r"%([\w.\-]+)", operands)
            )
            # An all-gather-start returns (operand, result).
            result = sizes[name] - (sent if opcode.endswith("-start") else 0)
            payload = sent if kind.startswith("collective") else max(sent, result)
            current.collectives.append((kind, payload))
        trips = TRIPS.search(rest)
        for role, called in _CALLED.findall(rest):
            times = int(trips[1]) if trips and role == "body" else 1
            current.calls.append((called, times))
        for several, one in _BRANCHES.findall(rest):
            current.calls += [(n.strip().lstrip("%"), 1) for n in (several or one).split(",")]
    return computations, entry


def _times_run(computations: dict[str, _Computation], entry: str) -> dict[str, int]:
    """Returns how often each computation is executed."""
    times: collections.Counter[str] = collections.Counter()

    def run(name: str, often: int) -> None:
        times[name] += often
        for called, per_run in computations[name].calls:
            if called in computations:
                run(called, often * per_run)

    run(entry, 1)
    return dict(times)

"""Main-memory traffic of a compiled TPU program, read from its HLO text.

XLA's own count, `bytes accessed`, includes reads and writes of on-chip memory: an array that is
first copied there counts three times. Vendors publish the bandwidth of main memory alone, so a
bandwidth bound must use the traffic counted here.
"""

import dataclasses
import math
import re

from boneage_jax.planning.hlo import COMPUTATION, TRIPS, dtype_bytes

_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?)\s([a-z][a-z\-]*)\(([^)]*)\)(.*)$")
_ARRAY = re.compile(r"\b(pred|bf16|[sufc]\d+(?:e\w+)?)\[([\d,]*)\](?:\{([^{}]*)\})?")
_TILE = re.compile(r"T\(([\d,]+)\)")
_ON_CHIP = "S(1)"  # the compiler's name for the vector memory of a TPU
# These only name or regroup arrays; bodies of loops and branches are counted on their own, and the
# result of a `-done` is counted with its `-start`.
_FREE = frozenset(
    {
        "parameter",
        "constant",
        "tuple",
        "get-tuple-element",
        "bitcast",
        "while",
        "conditional",
        "call",
        "after-all",
        "partition-id",
        "replica-id",
        "opt-barrier",
    }
)


@dataclasses.dataclass
class _Body:
    """One computation: the bytes it moves, and the computations it calls with how often."""

    moved: int = 0
    runs: list[tuple[str, int]] = dataclasses.field(default_factory=list)


def main_memory_bytes(text: str) -> int:
    """Returns the bytes per chip that one execution of a program moves from and to main memory.

    Counts the operands and results of every executed instruction, including tile padding, except
    arrays in on-chip memory; a fusion counts as one instruction. An operand counts in full even if
    only a part of it is needed, a loop of unknown length counts once, and all branches of a
    conditional count.

    Args:
      text: HLO of a compiled program, from `jax.stages.Compiled.as_text`.

    Raises:
      ValueError: the text has no entry computation.
    """
    bodies, entry = _parse(text)
    if not entry:
        raise ValueError("main_memory_bytes: the text holds no ENTRY computation; is it HLO?")

    def run(name: str) -> int:
        body = bodies[name]
        return body.moved + sum(times * run(inner) for inner, times in body.runs if inner in bodies)

    return run(entry)


def array_bytes(dtype: str, dims: str, layout: str) -> int:
    """Returns the bytes that an array occupies in memory, padding included.

    Args:
      dtype: e.g. bf16.
      dims: e.g. '64,95,95,192'.
      layout: e.g. '3,0,2,1:T(8,128)(2,1)': the axes, fastest-varying first, and the tile that they
        are padded to (its fastest axis last). Empty for an untiled array.
    """
    sizes = [int(n) for n in dims.split(",") if n]
    order, _, tiles = layout.partition(":")
    tile = _TILE.search(tiles)
    if tile:
        axes = [int(axis) for axis in order.split(",") if axis]
        for axis, length in zip(axes, reversed(tile[1].split(",")), strict=False):
            sizes[axis] = -(-sizes[axis] // int(length)) * int(length)
    return math.prod(sizes) * dtype_bytes(dtype)


def _main(shape: str) -> int:
    """Returns the bytes of those arrays of an HLO shape that are in main memory."""
    return sum(_arrays(shape))


def _arrays(shape: str) -> list[int]:
    """Returns the bytes of each array of an HLO shape, 0 for one in on-chip memory."""
    return [
        0 if _ON_CHIP in layout else array_bytes(dtype, dims, layout)
        for dtype, dims, layout in _ARRAY.findall(shape)
    ]


def _parse(text: str) -> tuple[dict[str, _Body], str]:
    """Returns the computations by name, and the name of the entry computation."""
    bodies: dict[str, _Body] = {}
    entry, body = "", _Body()
    shapes: dict[str, str] = {}
    for line in text.splitlines():
        start = COMPUTATION.match(line)
        if start:
            body = bodies[start[2]] = _Body()
            entry = start[2] if start[1] else entry
            continue
        instruction = _INSTRUCTION.match(line)
        if not instruction:
            continue
        name, shape, opcode, operands, rest = instruction.groups()
        shapes[name] = shape
        if opcode == "while":
            trips = TRIPS.search(rest)
            inner = re.search(r"body=%?([\w.\-]+)", rest)
            if inner:
                body.runs.append((inner[1], int(trips[1]) if trips else 1))
        elif opcode in ("call", "conditional"):
            several = re.findall(r"(?:to_apply|\w+_computation)=%?([\w.\-]+)", rest)
            branches = re.search(r"branch_computations=\{([^}]*)\}", rest)
            several += [n.strip().lstrip("%") for n in branches[1].split(",")] if branches else []
            body.runs += [(inner, 1) for inner in several]
        if opcode in _FREE or opcode.endswith("-done"):
            continue
        body.moved += _moved(opcode, shape, [shapes.get(n, "") for n in _names(operands)])
    return bodies, entry


def _names(operands: str) -> list[str]:
    return re.findall(r"%([\w.\-]+)", operands)


def _moved(opcode: str, shape: str, operands: list[str]) -> int:
    if opcode == "copy-start":  # (copy, original, context)
        return sum(_arrays(shape)[:2])
    if opcode == "slice-start":  # ((operands), slice, context): only the slice is read
        dtype, dims, layout = _ARRAY.findall(shape)[-2]
        on_chip = _ON_CHIP in layout
        return array_bytes(dtype, dims, layout) * (1 if on_chip else 2)
    if opcode.endswith("-start"):  # a collective: its result repeats the operands
        return sum(_main(operand) for operand in operands) * 2
    return _main(shape) + sum(_main(operand) for operand in operands)

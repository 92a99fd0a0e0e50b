"""How far an exported file is from the network that it was made of."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from boneage_jax.exporting.program import Program
from boneage_jax.exporting.sample import Sample
from boneage_jax.inference.network import Rows

Run = Callable[[Mapping[str, np.ndarray]], Sequence[np.ndarray]]
_BATCH = 16


def batches(program: Program, sample: Sample) -> list[dict[str, np.ndarray]]:
    """Returns a sample as inputs of an exported file, 16 images each."""
    found = []
    for at in range(0, len(sample.squares), _BATCH):
        part = slice(at, at + _BATCH)
        known = {
            "image": np.stack(sample.squares[part])[..., None],
            "male": sample.male[part].astype(np.int32),
        }
        found.append({name: known[name] for name in program.inputs})
    return found


def compare(program: Program, run: Run, sample: Sample) -> list[str]:
    """Returns lines for the user on how far a file is from `predict` or `segment`.

    Args:
      program: what was exported.
      run: runs the exported file on inputs by name; returns its outputs in order.
      sample: images.
    """
    parts = [run(batch) for batch in batches(program, sample)]
    ours = {
        name: np.concatenate([np.asarray(part[at]) for part in parts])
        for at, name in enumerate(program.outputs)
    }
    theirs = program.read(sample.prepared, [int(sex) for sex in sample.male])
    return _lines(program, ours, theirs, sample)


def _lines(program: Program, ours: Rows, theirs: Rows, sample: Sample) -> list[str]:
    first = program.outputs[0]
    unit = {"bone_age_months": " months", "p_hand": " of 255"}.get(first, "")
    away = np.abs(ours[first].astype(np.float64) - theirs[first])
    righted = np.zeros(len(away), bool)
    if program.puts_right:
        pairs = zip(sample.squares, sample.prepared, strict=True)
        righted = np.array([(square != right).any() for square, right in pairs])
    lines = []
    for which, these in ((~righted, "that stay as they are"), (righted, "that are put right")):
        if which.any():
            part = f"the {which.sum()} {these} of " if righted.any() else ""
            lines.append(
                f"differs from the network by {away[which].max():.2g}{unit} at most, "
                f"{away[which].mean():.2g} on average, on {part}{sample.name}"
            )
    if "accepted" in ours and (other := int((ours["accepted"] != theirs["accepted"]).sum())):
        lines.append(f"{other} of them accepted by one and not by the other")
    if sample.ages is not None and first == "bone_age_months":
        after, before = (np.abs(rows[first] - sample.ages).mean() for rows in (ours, theirs))
        lines.append(f"mean absolute error there: {after:.2f} months, {before:.2f} before")
    return lines

"""Losses of the first steps by two checkouts of this project, and by one of them twice.

usage: python -m benchmarks.studies.same_losses --before=CHECKOUT --output=FILE.csv [--steps=50]
           [--models=efficientnet_b0,efficientnet_lite0]

Trains the same networks on the same phantoms (64 px, batches of 8) in the older checkout, here, and
here again. A row per model and step: the three losses, which are those of float32 rounding apart
for the first two, to the bit alike for the last two.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.peers.contender import ROOT
from benchmarks.provenance import write_provenance
from boneage_jax.experiments.sweep_tables import write_table
from boneage_jax.json_file import read_bytes

COLUMNS = ("model", "step", "before", "now", "now_again", "relative_difference")

_RECIPE = """
from boneage_jax.config import base_config


def get_config(preset=""):
    config = base_config()
    name, steps = preset.split(",")
    config.model.name, config.steps = name, int(steps)
    config.batch_size, config.log_every, config.evaluate_every = 8, 1, 100.0
    config.data.config = "64"
    config.augment.rotate, config.augment.zoom = 10.0, 0.1
    if "view_steps" in config:
        config.view_steps = 0
    return config
"""


def losses(checkout: Path, recipe: Path, model: str, steps: int, workdir: Path) -> list[float]:
    """Trains in a checkout and returns the loss of each step.

    Raises:
      subprocess.CalledProcessError: the training failed; its output was printed.
    """
    command = [sys.executable, "-W", "ignore", "-m", "boneage_jax.main"]
    command += [f"--config={recipe}:{model},{steps}", f"--workdir={workdir}"]
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    subprocess.run(command, cwd=checkout, env=environment, check=True)
    lines = read_bytes(workdir / "metrics.jsonl").decode().splitlines()
    rows = [row for row in map(json.loads, lines) if "train/loss" in row]
    return [row["train/loss"] for row in rows]


def main() -> None:
    """Trains, writes the table, prints the largest differences."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--before", required=True, type=Path, help="an older checkout")
    parser.add_argument("--models", default="efficientnet_b0,efficientnet_lite0")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--output", required=True, type=Path)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "recipe.py"
        recipe.write_text(_RECIPE)
        for model in args.models.split(","):
            three = [
                losses(checkout.absolute(), recipe, model, args.steps, Path(folder, model, name))
                for name, checkout in (("before", args.before), ("now", ROOT), ("again", ROOT))
            ]
            for step, (before, now, again) in enumerate(zip(*three, strict=True), 1):
                values = (model, step, before, now, again, f"{abs(now - before) / abs(before):.2g}")
                rows.append(dict(zip(COLUMNS, values, strict=True)))
    write_table(args.output, rows, COLUMNS)
    revision = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=args.before,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    settings = vars(args) | {"before": revision}
    write_provenance(args.output, settings)
    for model in args.models.split(","):
        mine = [row for row in rows if row["model"] == model]
        apart = max(float(str(row["relative_difference"])) for row in mine)
        alike = all(row["now"] == row["now_again"] for row in mine)
        print(f"{model}: {apart:.2g} apart at most, {'' if alike else 'not '}reproduced to the bit")


if __name__ == "__main__":
    main()

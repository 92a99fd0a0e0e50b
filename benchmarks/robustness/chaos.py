"""A training killed at random moments, compared bit for bit with one that never was.

usage: python -m benchmarks.robustness.chaos --output=FILE.json [--kills=50] [--steps=1200]
           [--every=10] [--seed=0]

EfficientNet-Lite0 on phantoms at 64 px, on one CPU device, a checkpoint every so many steps. Every
other kill comes at a random moment after the start, between the first import and a few seconds of
steps; the others as soon as orbax begins to write a checkpoint, so inside the saving. All are
SIGKILL.
Of each kill the file notes the step that the run had reached, the newest complete checkpoint, and
the difference: the steps lost. Those made while a checkpoint was still being written count as lost
too; they are noted apart, since saving runs beside the steps.
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.provenance import write_provenance
from boneage_jax.report.metric_writer import read_metrics
from boneage_jax.training.run import load_run

ROOT = Path(__file__).parents[2]
_SAVING = re.compile(r"(\d+)\.orbax-checkpoint-tmp.*")
_PATIENCE = 300.0  # seconds for a start, on a busy machine


def command(workdir: Path, steps: int, every: int) -> list[str]:
    """The training; its log has a line per step, so that what was reached is known."""
    keys = {
        "data.config": "64-small",
        "model.name": "efficientnet_lite0",
        "batch_size": 8,
        "eval_batch_size": 16,
        "steps": steps,
        "evaluate_every": steps * 8 / 96 / 3,
        "checkpoint_every": every,
        "log_every": 1,
        "ema_decay": 0.9,
        "augment.rotate": 10.0,
        "model.sex_input": True,
    }
    given = [f"--config.{key}={value}" for key, value in keys.items()]
    recipe = ["-m", "boneage_jax.main", "--config=configs/cls.py"]
    return [sys.executable, *recipe, *given, f"--workdir={workdir}"]


def complete(workdir: Path) -> int:
    """The step of the newest complete checkpoint, 0 for none."""
    names = [path.name for path in (workdir / "checkpoints").glob("*")]
    return max((int(name) for name in names if name.isdigit()), default=0)


def saving(workdir: Path) -> dict[str, int]:
    """The steps that are being saved, by the name of the temporary folder."""
    names = [path.name for path in (workdir / "checkpoints").glob("*")]
    return {m[0]: int(m[1]) for m in map(_SAVING.match, names) if m}


def reached(workdir: Path) -> int:
    """The last step in the log; the one after it may have ended as well."""
    rows = read_metrics(workdir)
    return rows[-1]["step"] if rows else 0


def kill_once(
    start: list[str], workdir: Path, log: Path, environment: dict[str, str], moment: float | None
) -> dict[str, Any]:
    """Starts the run and kills it `moment` seconds later, or at the first save where None."""
    torn = saving(workdir)  # by an earlier kill
    began = time.monotonic()
    with log.open("a") as out:
        process = subprocess.Popen(start, cwd=ROOT, env=environment, stdout=out, stderr=out)
        while process.poll() is None and time.monotonic() - began < (moment or _PATIENCE):
            if moment is None and saving(workdir).keys() - torn.keys():
                break
            time.sleep(0.001)
        if process.poll() is not None:
            raise SystemExit(f"the run ended by itself with {process.returncode}: more --steps")
        seconds = time.monotonic() - began
        process.send_signal(signal.SIGKILL)
        process.wait()
    done, now = complete(workdir), reached(workdir)
    new = saving(workdir)
    at = max((step for name, step in new.items() if name not in torn), default=0)
    lost = max(now - done, 0)
    return {
        "seconds": round(seconds, 3),
        "inside_saving": bool(at),
        "reached": now,
        "checkpoint": done,
        "lost": lost,
        "while_saving": max(now - at, 0) if at else 0,
    }


def equal(one: Path, other: Path) -> bool:
    """Whether two finished runs hold the same bits, log the same and report the same ages."""
    (_, a, _), (_, b, _) = load_run(one), load_run(other)
    same = jax.tree.map(np.array_equal, a, b)
    clock = {"seconds", "images_per_second"}
    logs = [
        [{k: v for k, v in row.items() if k not in clock} for row in read_metrics(folder)]
        for folder in (one, other)
    ]
    reports = [json.loads((folder / "report.json").read_text())["age"] for folder in (one, other)]
    return all(jax.tree.leaves(same)) and logs[0] == logs[1] and reports[0] == reports[1]


def main() -> None:
    """Runs both trainings and writes what happened."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--every", type=int, default=10, help="steps between checkpoints")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    draw = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = dict(os.environ) | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
        environment |= {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}
        environment.setdefault("TFDS_DATA_DIR", str(folder / "data"))
        whole, killed, log = folder / "whole", folder / "killed", folder / "log"
        with log.open("w") as out:
            start = command(whole, args.steps, args.every)
            subprocess.run(start, cwd=ROOT, env=environment, stdout=out, stderr=out, check=True)
        start = command(killed, args.steps, args.every)
        kills: list[dict[str, Any]] = []
        first = kill_once(start, killed, log, environment, None)  # tells how long a start takes
        kills.append(first)
        while len(kills) < args.kills:
            moment = draw.uniform(0.0, 1.5 * first["seconds"]) if len(kills) % 2 else None
            kills.append(kill_once(start, killed, log, environment, moment))
            print(f"kill {len(kills)}: {kills[-1]}", flush=True)
        with log.open("a") as out:
            subprocess.run(start, cwd=ROOT, env=environment, stdout=out, stderr=out, check=True)
        same = equal(whole, killed)
        tracebacks = log.read_text(errors="replace").count("Traceback")
    found = {
        "kills": len(kills),
        "inside_saving": sum(kill["inside_saving"] for kill in kills),
        "most_lost": max(kill["lost"] for kill in kills),
        "most_lost_outside_saving": max(
            (kill["lost"] for kill in kills if not kill["inside_saving"]), default=0
        ),
        "same_bits": same,
        "tracebacks": tracebacks,
    }
    write_provenance(args.output, vars(args), **found, each=kills)
    print(found)
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()

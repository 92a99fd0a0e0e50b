"""Two checkouts of this project in turns: the train step with its peak memory, or `predict`.

usage: python -m benchmarks.peers.before_after --before=CHECKOUT --output=FILE.csv
           [--model=b4] [--size=96] [--batch=16] [--rounds=8] [--steps=2]
       python -m benchmarks.peers.before_after --before=CHECKOUT --output=FILE.csv --workdir=DIR

The train step of each checkout lives in a process of its own, which steps when asked. With
--workdir, `predict` reads one image with the network in it, from command to exit, from filled
compilation caches. Peak memory is that of the process, compilation included.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import cv2

from benchmarks.peers.contender import HUGE_PAGES, ROOT, Contender, Settings
from benchmarks.peers.rounds import print_summary, summary_rows, take_turns, write_rounds
from tfds_rsna.hand_phantom.render import make_phantom


class Predict:
    """`python -m boneage_jax.predict` of a checkout, on one image."""

    def __init__(self, name: str, checkout: Path, workdir: Path, scratch: Path):
        image, self.name = scratch / "hand.png", name
        cv2.imwrite(str(image), make_phantom(0, 512, "test").image)
        self._command = [
            *(sys.executable, "-m", "boneage_jax.predict", f"--workdir={workdir}"),
            *(f"--output={scratch / 'ages.csv'}", str(image)),
        ]
        self._options = {
            "cwd": checkout,
            "env": os.environ
            | {"PYTHONPATH": str(checkout), "XDG_CACHE_HOME": str(scratch / name)},
        }
        self.facts = {"peak_mib": 0.0}
        self.time(1)  # fills the compilation cache

    def time(self, steps: int) -> float:
        """Seconds of `steps` predictions."""
        began = time.perf_counter()
        for _ in range(steps):
            process = subprocess.Popen(
                self._command, **self._options, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
            error = process.stderr.read().decode() if process.stderr else ""
            _, status, usage = os.wait4(process.pid, 0)
            if status:
                raise SystemExit(f"{self.name}: {error[-2000:]}")
            self.facts["peak_mib"] = max(self.facts["peak_mib"], usage.ru_maxrss / 1024)
        return time.perf_counter() - began


def time_steps(args: argparse.Namespace, codes: dict[str, Path]) -> None:
    """Lets the train steps of both checkouts take turns and writes their table."""
    settings = Settings(args.model, args.size, args.batch, "float32", "train")
    steppers = []
    for name, checkout in codes.items():
        environment = {"PYTHONPATH": str(checkout), "GLIBC_TUNABLES": None}
        memory = checkout / "boneage_jax" / "runtime" / "cpu_memory.py"
        if "def hold_memory" not in memory.read_text():  # its commands set this before they began
            environment["GLIBC_TUNABLES"] = HUGE_PAGES
        file = str(checkout / "benchmarks" / "peers" / "ours.py")
        steppers.append(Contender(name, file, settings, (), environment))
        steppers[-1].wait()
    times = take_turns(steppers, args.rounds, args.steps)
    peaks = {contender.name: contender.peak_mib() for contender in steppers}
    for contender in steppers:
        contender.close()
    rows = summary_rows(times, args.batch)
    write_rounds(args.output, times, args.batch, vars(args), rows, peak_mib=peaks)
    print_summary(rows)
    print("peak MiB:", peaks)


def time_predictions(args: argparse.Namespace, codes: dict[str, Path]) -> None:
    """Lets `predict` of both checkouts take turns and writes their table."""
    with tempfile.TemporaryDirectory() as folder:
        doors = [
            Predict(name, checkout, args.workdir.resolve(), Path(folder))
            for name, checkout in codes.items()
        ]
        times = take_turns(doors, args.rounds, 1)
    rows = summary_rows(times, 1)
    peaks = {door.name: door.facts["peak_mib"] for door in doors}
    facts = {"peak_mib": peaks, "torch_installed": find_spec("torch") is not None}
    write_rounds(args.output, times, 1, vars(args), rows, **facts)
    print_summary(rows)
    print("peak MiB:", peaks)


def main() -> None:
    """Reads the command line and measures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--before", required=True, type=Path)
    parser.add_argument("--after", default=ROOT, type=Path)
    parser.add_argument("--workdir", type=Path, help="of a bone-age run: time predictions")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--model", default="b4")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=2)
    args = parser.parse_args()
    codes = {"after": args.after.resolve(), "before": args.before.resolve()}
    (time_predictions if args.workdir else time_steps)(args, codes)


if __name__ == "__main__":
    main()

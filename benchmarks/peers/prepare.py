"""Preparation: images per second of tfds_rsna.prepare against a bare loop of OpenCV.

usage: python -m benchmarks.peers.prepare --size=256 --rounds=5 --output=FILE.csv [--images=DIR]

Both decode and resize the same radiographs of full size, synthetic or those of a folder, on one
core and on --workers cores (a process of its own each time, held to so many cores, with as many
threads). The bare loop throws its squares away; ours also writes records. Imports are not timed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.peers.radiographs import link_radiographs, write_radiographs
from benchmarks.peers.rounds import print_summary, summary_rows, take_turns, write_rounds

ROOT = Path(__file__).parent.parent.parent


def ours(folder: Path, size: int) -> float:
    """Seconds of `prepare`, from raw files to records."""
    from tfds_rsna.builders import prepare

    with tempfile.TemporaryDirectory() as target:
        began = time.perf_counter()
        name = f"radiograph_folder/{size}"
        prepare(name, raw_dir=folder, data_dir=target, fractions="train=1.0")
        return time.perf_counter() - began


def bare(folder: Path, size: int) -> float:
    """Seconds of decoding and shrinking to a square of `size` pixels, with a thread per core."""
    import cv2

    cv2.setNumThreads(1)

    def one(path: Path) -> int:
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        return int(cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)[0, 0])

    paths = sorted((folder / "images").iterdir())
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        began = time.perf_counter()
        for _ in pool.map(one, paths):
            pass
        return time.perf_counter() - began


METHODS = {"ours": ours, "bare OpenCV": bare}


class Pinned:
    """A method in a fresh process that may use the first `cores` cores only."""

    def __init__(self, method: str, cores: int, folder: Path, size: int):
        self.name = f"{method}, {cores} {'core' if cores == 1 else 'cores'}"
        self.facts: dict[str, Any] = {"cores": cores}
        self._command = [
            *(sys.executable, "-m", "benchmarks.peers.prepare", "--child"),
            *(method, str(folder), str(size)),
        ]
        self._cores = sorted(os.sched_getaffinity(0))[:cores]

    def time(self, steps: int) -> float:
        """Seconds of all images; times `steps`, since callers divide by it."""
        done = subprocess.run(
            self._command,
            env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
            preexec_fn=lambda: os.sched_setaffinity(0, self._cores),
            capture_output=True,
            text=True,
        )
        if done.returncode:
            sys.exit(f"error: {self.name} failed: {done.stderr.strip()[-500:]}")
        return float(json.loads(done.stdout.splitlines()[-1])) * steps


def main() -> None:
    """Makes or links the radiographs, takes turns, writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=60, help="radiographs")
    parser.add_argument("--images", type=Path, help="folder to take them from")
    parser.add_argument("--workers", type=int, default=2, help="cores beside one")
    parser.add_argument("--output", required=True, type=Path)
    args = parser.parse_args()
    if args.images and not args.images.is_dir():
        parser.error(f"--images={args.images}: there is no such folder")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "raw")
        if args.images:
            link_radiographs(folder, args.images, args.count)
        else:
            write_radiographs(folder, args.count)
        count = len(list((folder / "images").iterdir()))
        groups = [
            [Pinned(method, cores, folder, args.size) for method in METHODS]
            for cores in sorted({1, min(args.workers, len(os.sched_getaffinity(0)))})
        ]
        times = take_turns([one for group in groups for one in group], args.rounds, 1, pause=0.0)
    rows = [
        row  # compared with ours on as many cores
        for group in groups
        for row in summary_rows({one.name: times[one.name] for one in group}, count)
    ]
    write_rounds(args.output, times, count, vars(args) | {"count": count}, rows)
    print_summary(rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        _, _, method, folder, size = sys.argv
        print(json.dumps(METHODS[method](Path(folder), int(size))))
    else:
        main()

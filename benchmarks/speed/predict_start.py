"""From command to answer: `predict` on one radiograph, in a fresh process each time.

usage: python -m benchmarks.speed.predict_start --output=FILE.csv [--starts=5]
           [--networks=rsna_lite0_256,WORKDIR,...]

Three kinds of start take turns: with an empty cache of programs; with what that left, but no file
in the kernel's page cache (for root alone, who may empty it; left out for others); and with the
files in memory. The radiograph is a phantom of 1500 x 1200 px. A row per start: seconds of wall
time, seconds of the processor, peak memory. A JSON beside it says where.
"""

import argparse
import csv
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np

from benchmarks.provenance import write_provenance
from tfds_rsna.hand_phantom.render import make_phantom

COLUMNS = ("network", "start", "number", "seconds", "processor_seconds", "peak_mib")
KINDS = ("empty cache", "files on disk", "files in memory")
_DROP = Path("/proc/sys/vm/drop_caches")


def one_start(network: str, image: Path, cache: Path) -> tuple[float, float, float]:
    """Seconds, seconds of the processor, and peak MiB of `predict` with a folder for caches."""
    command = [sys.executable, "-m", "boneage_jax.predict", f"--workdir={network}", str(image)]
    with tempfile.TemporaryFile() as said:
        began = time.perf_counter()
        environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
        process = subprocess.Popen(command, env=environment, stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        said.seek(0)
        text = said.read().decode()
    if status or "bone age" not in text:
        raise SystemExit(f"{' '.join(command)}: {text[-2000:]}")
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def forget_files() -> bool:
    """Empties the kernel's page cache; returns whether this user may."""
    try:
        os.sync()
        _DROP.write_text("3")
    except OSError:
        return False
    return True


def main() -> None:
    """Takes turns and writes as it goes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--networks", default="rsna_lite0_256")
    args = parser.parse_args()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    seen = defaultdict(list)
    with args.output.open("w", newline="") as file, tempfile.TemporaryDirectory() as scratch:
        image = Path(scratch, "hand.png")
        cv2.imwrite(str(image), cv2.resize(make_phantom(0, 512, "test").image, (1200, 1500)))
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for network in args.networks.split(","):
            for number in range(args.starts):
                cache = Path(scratch, "cache")
                shutil.rmtree(cache, ignore_errors=True)
                for kind in KINDS:
                    if kind == "files on disk" and not forget_files():
                        continue
                    row = one_start(network, image, cache)
                    seen[network, kind].append(row)
                    writer.writerow([network, kind, number, *(f"{x:.4g}" for x in row)])
                    file.flush()
    for (network, kind), rows in seen.items():
        low, median, high = np.quantile([row[0] for row in rows], (0.25, 0.5, 0.75))
        peak = max(row[2] for row in rows)
        print(f"{network}, {kind}: {median:.2f} s ({low:.2f} - {high:.2f}), {peak:.0f} MiB")
    write_provenance(args.output, vars(args))


if __name__ == "__main__":
    main()

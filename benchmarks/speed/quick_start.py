"""The quick start of the README on a machine that has nothing yet: seconds to each stage, memory.

usage: python -m benchmarks.speed.quick_start --output=FILE.csv [--config.KEY=VALUE ...]

Trains `--config=cls` in a folder of its own, with empty folders for data and programs. A row per
stage that the screen showed: seconds from the start of the process to its first line, and the most
memory that the process has held until then. The last row is the end; its memory is that of the
largest process, workers included. A JSON beside it has the error on phantoms and says where.
"""

import argparse
import csv
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from benchmarks.provenance import write_provenance

STAGES = {
    "data drawn": re.compile(r"^prepared "),
    "model described": re.compile(r"steps of \d+ images at"),
    "first step done": re.compile(r"^training:"),
    "last step done": re.compile(r"^training: 100%"),
    "report written": re.compile(r"^report: "),
}


def lines_of(stream: IO[bytes]) -> Iterator[str]:
    """Yields lines as they come; a progress bar ends its own by a carriage return."""
    rest = b""
    while block := os.read(stream.fileno(), 4096):
        *lines, rest = (rest + block).replace(b"\r", b"\n").split(b"\n")
        yield from (line.decode(errors="replace").strip() for line in lines)
    yield rest.decode(errors="replace").strip()


def peak_mib(pid: int) -> float:
    """Returns the peak memory of a process so far."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else float("nan")


def main() -> None:
    """Runs the command and writes its stages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--output", required=True, type=Path)
    args, overrides = parser.parse_known_args()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[str, float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        command = [sys.executable, "-m", "boneage_jax.main", "--config=cls", f"--workdir={run}"]
        began = time.perf_counter()
        process = subprocess.Popen(
            [*command, *overrides],
            env=os.environ
            | {"TFDS_DATA_DIR": f"{folder}/data", "XDG_CACHE_HOME": f"{folder}/cache"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert process.stdout
        for line in lines_of(process.stdout):
            for stage, pattern in STAGES.items():
                if pattern.search(line) and stage not in [row[0] for row in rows]:
                    rows.append((stage, time.perf_counter() - began, peak_mib(process.pid)))
                    print(*rows[-1], sep=", ", flush=True)
        if process.wait():
            raise SystemExit(f"the run ended with status {process.returncode}")
        largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        rows.append(("end", time.perf_counter() - began, largest))
        report = json.loads((run / "report.json").read_text())
    with args.output.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("stage", "seconds", "peak_mib"))
        writer.writerows((stage, f"{took:.4g}", f"{peak:.4g}") for stage, took, peak in rows)
    facts = {key: report["age"][key] for key in ("mae", "mae_low", "mae_high", "baseline_mae")}
    spent = report["compute"]["train_flops"]
    settings = vars(args) | {"overrides": overrides}
    write_provenance(args.output, settings, age=facts, train_flops=spent)
    print(f"{rows[-1][1]:.0f} s, {largest:.0f} MiB, MAE {facts['mae']:.2f} months")


if __name__ == "__main__":
    main()

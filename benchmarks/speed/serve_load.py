"""Load on the service: requests per second and seconds per answer, by clients at once.

usage: python -m benchmarks.speed.serve_load --workdir=DIR --output=FILE.csv [--clients=1,2,4,8,16]
           [--requests=200] [--rounds=3] [--pixels=1024] [--batch_size=8]

Starts `boneage_jax.serve` on the CPU and sends it drawn radiographs, as PNG with the given number
of pixels on their long side: each of N clients sends one request after the other, on a
connection of its own. Each round runs all numbers of clients; each file is sent once before, alone
and not counted. The last line asks a short queue, --queue=4, with 64
clients, which wait as `Retry-After` says. FILE.csv has a line per round and number of clients:
requests; answers of status 200, 503 and others; wrong ones (an age that differs by more than 0.15
months from that of the same file alone; answers have four digits); seconds in all; quartiles of the
seconds per answer of status 200; images per step of the network; the largest resident memory of the
service so far. A JSON beside it says where. Server and clients share the cores.
"""

import argparse
import contextlib
import csv
import importlib.metadata
import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import httpx2
import numpy as np

from benchmarks.provenance import write_provenance
from tfds_rsna.hand_phantom.render import make_phantom

COLUMNS = (
    *("round", "clients", "queue", "requests", "status_200", "status_503", "other", "wrong"),
    *("seconds", "low_seconds", "median_seconds", "high_seconds", "images_per_step", "peak_mib"),
)
Answer = tuple[int, float, bool]  # status, seconds, wrong


@contextlib.contextmanager
def service(workdir: str, *flags: str) -> Iterator[tuple[str, int]]:
    """Context manager: a running service, as (URL, process number); checks that it ends with 0."""
    command = [sys.executable, "-m", "boneage_jax.serve", f"--workdir={workdir}", "--port=0"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([*command, *flags], stdout=subprocess.PIPE, stderr=log)
        try:
            yield process.stdout.readline().split()[0].decode(), process.pid
        finally:
            process.terminate()
            process.communicate()
        if process.returncode:
            log.seek(0)
            sys.exit(f"the service ended with {process.returncode}: {log.read()[-2000:].decode()}")


def draw(count: int, pixels: int) -> list[bytes]:
    """Radiographs as PNG files."""
    images = (make_phantom(index, pixels, "test").image for index in range(count))
    return [cv2.imencode(".png", image)[1].tobytes() for image in images]


def ask(url: str, files: list[bytes], ages: list[float], numbers: list[int]) -> list[Answer]:
    """One client: sends the files of these numbers one after the other, again after a 503."""
    answers = []
    with httpx2.Client(timeout=120) as client:
        for number in numbers:
            status = 503
            while status == 503:
                began = time.perf_counter()
                found = client.post(f"{url}/predict", files={"file": ("hand.png", files[number])})
                seconds, status = time.perf_counter() - began, found.status_code
                wrong = status == 200 and abs(found.json()["bone_age_months"] - ages[number]) > 0.15
                answers.append((status, seconds, wrong))
                time.sleep(float(found.headers.get("retry-after", 0)))
    return answers


def peak_mib(process: int) -> int:
    """Largest resident memory of a process so far."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) // 1024


def measure(
    url: str, process: int, clients: int, count: int, files: list[bytes], ages: list[float]
) -> dict:
    """Clients at once that send `count` requests in all."""
    numbers = [n % len(files) for n in range(count)]
    before = httpx2.get(f"{url}/healthz").json()
    with ThreadPoolExecutor(clients) as pool:
        began = time.perf_counter()
        shares = [numbers[at::clients] for at in range(clients)]
        answers = list(
            itertools.chain(*pool.map(lambda share: ask(url, files, ages, share), shares))
        )
        seconds = time.perf_counter() - began
    after = httpx2.get(f"{url}/healthz").json()
    statuses = [status for status, _, _ in answers]
    quartiles = np.quantile([s for status, s, _ in answers if status == 200], (0.25, 0.5, 0.75))
    steps = after["steps"] - before["steps"]
    return {
        "clients": clients,
        "queue": after["queue_limit"],
        "requests": count,
        "status_200": statuses.count(200),
        "status_503": statuses.count(503),
        "other": sum(status not in (200, 503) for status in statuses),
        "wrong": sum(wrong for _, _, wrong in answers),
        "seconds": f"{seconds:.3f}",
        **dict(zip(COLUMNS[9:12], (f"{q:.4f}" for q in quartiles), strict=True)),
        "images_per_step": f"{(after['images'] - before['images']) / max(steps, 1):.2f}",
        "peak_mib": peak_mib(process),
    }


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--clients", default="1,2,4,8,16")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pixels", type=int, default=1024)
    parser.add_argument("--batch_size", type=int, default=8)
    args = parser.parse_args()
    files = draw(40, args.pixels)
    batch = f"--batch_size={args.batch_size}"
    with args.output.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, COLUMNS, lineterminator="\n")
        writer.writeheader()
        with service(args.workdir, batch) as (url, process):
            ages = [
                httpx2.post(f"{url}/predict", files={"file": ("a.png", file)}).json()
                for file in files
            ]
            ages = [row["bone_age_months"] for row in ages]
            for number in range(args.rounds):
                for clients in map(int, args.clients.split(",")):
                    row = measure(url, process, clients, args.requests, files, ages)
                    writer.writerow({"round": number} | row)
                    opened.flush()
                    print(row, flush=True)
        with service(args.workdir, batch, "--queue=4") as (url, process):
            row = measure(url, process, 64, args.requests, files, ages)
            writer.writerow({"round": 0} | row)
            print(row)
    sizes = np.array([len(file) for file in files])
    packages = ("fastapi", "starlette", "uvicorn", "h11", "httpx2")
    write_provenance(
        args.output,
        vars(args),
        median_file_bytes=float(np.median(sizes)),
        service={name: importlib.metadata.version(name) for name in packages},
    )


if __name__ == "__main__":
    main()

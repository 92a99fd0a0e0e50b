"""Images ready for a step: grain from our records against torch's DataLoader on PNG files.

usage: python -m benchmarks.peers.input --size=256 --batch=32 --rounds=5 --output=FILE.csv

Three contenders on the same synthetic radiographs (of the size and compressibility of real ones):
ours reads prepared records; DataLoader reads PNGs that were resized beforehand, and PNGs of full
size that it must resize each time. Everything ends as uint8 [B, S, S, 1] in host memory (torch) or
on the device (ours). One epoch per round and contender, in turns; a new epoch starts with empty
buffers.
"""

import argparse
import importlib.util
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.peers.radiographs import write_radiographs, write_resized
from benchmarks.peers.rounds import print_summary, summary_rows, take_turns, write_rounds
from boneage_jax.benchmarking.records import synthetic_split
from boneage_jax.data.files import fit_square
from boneage_jax.data.loader import train_batches
from boneage_jax.runtime.cpu_memory import hold_memory


class Ours:
    """`train_batches`, with what was read ahead of the clock taken out first."""

    def __init__(self, folder: Path, images: int, size: int, batch: int, threads: int):
        import jax

        self.name, self.facts = "ours, records", {"threads": threads}
        self._wait = jax.block_until_ready
        self._batches: Iterator[Any] = train_batches(
            synthetic_split(folder, images, size),
            ("bone_age", "male"),
            batch,
            seed=0,
            put=jax.device_put,
            threads=threads,
        )
        self._ahead = 4 + threads

    def time(self, steps: int) -> float:
        for _ in range(self._ahead):
            self._wait(next(self._batches))
        began = time.perf_counter()
        for _ in range(steps):
            self._wait(next(self._batches))
        return time.perf_counter() - began

    def close(self) -> None:
        self._batches.close()  # type: ignore[attr-defined]


class Files:
    """A torch data set: the PNGs of a folder, over and over until `length`."""

    def __init__(self, folder: Path, size: int, length: int):
        self._paths, self._size, self._length = sorted(folder.iterdir()), size, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> np.ndarray:
        path = self._paths[index % len(self._paths)]
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        return fit_square(image, self._size)[..., None]


class Torch:
    """A DataLoader with workers that live on from epoch to epoch."""

    def __init__(self, name: str, folder: Path, size: int, batch: int, steps: int, workers: int):
        from torch.utils.data import DataLoader

        self.name, self.facts = name, {"workers": workers}
        self._loader: Any = DataLoader(
            Files(folder, size, steps * batch),  # type: ignore[arg-type]
            batch,
            shuffle=True,
            num_workers=workers,
            persistent_workers=True,
            worker_init_fn=lambda _: cv2.setNumThreads(1),
        )
        self.time(steps)  # starts the workers

    def time(self, steps: int) -> float:
        began = time.perf_counter()
        found = sum(1 for _ in self._loader)
        assert found == steps
        return time.perf_counter() - began


def main() -> None:
    """Makes the images, takes turns, writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--size", type=int, default=256, help="pixels that a step reads")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="batches of an epoch")
    parser.add_argument("--images", type=int, default=64, help="files and records")
    parser.add_argument("--workers", type=int, default=2, help="processes of DataLoader")
    parser.add_argument("--threads", type=int, default=4, help="that read our records")
    parser.add_argument("--output", required=True, type=Path)
    args = parser.parse_args()
    for key in ("size", "batch", "rounds", "steps", "images", "workers", "threads"):
        if getattr(args, key) < 1:
            parser.error(f"--{key} must be at least 1")
    cv2.setNumThreads(1)  # its threads do not survive a fork, and workers would wait for them
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        contenders: list[Any] = []
        if importlib.util.find_spec("torch") is None:
            print("left out: DataLoader: torch is not installed", file=sys.stderr)
        else:  # before JAX starts threads: the workers are forks of this process
            full = write_radiographs(folder / "full", args.images) / "images"
            small = write_resized(folder / "small", full, args.size)
            shape = (args.size, args.batch, args.steps, args.workers)
            contenders.append(Torch("torch, resized PNGs", small, *shape))
            contenders.append(Torch("torch, PNGs of full size", full, *shape))
        ours = Ours(folder / "records", args.images, args.size, args.batch, args.threads)
        contenders.insert(0, ours)
        times = take_turns(contenders, args.rounds, args.steps)
        ours.close()
    rows = summary_rows(times, args.batch)
    write_rounds(args.output, times, args.batch, vars(args), rows)
    print_summary(rows)


if __name__ == "__main__":
    hold_memory()
    main()

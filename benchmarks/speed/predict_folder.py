"""A folder of radiographs by `predict`, against decoding alone and the network's step alone.

usage: python -m benchmarks.speed.predict_folder --images=FOLDER --output=FILE.csv
           [--count=1000] [--rounds=3] [--network=NAME|WORKDIR]

In one process, in turns: all files decoded and shrunk to the network's square by as many threads as
`predict` has (decode); the network's compiled step on as many images that lie ready (step); and
what the command does with the same files, its rows written as CSV (predict). Decoding and step both
use all cores, so their sum is the least that `predict` can take. Files are named again, from the
first on, if there are fewer than `count`. A row per round and kind: seconds. A JSON beside it has
the medians and says where.
"""

import argparse
import csv
import itertools
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.provenance import write_provenance
from boneage_jax.cli import prepare_jax
from boneage_jax.data.files import fit_square, read_radiograph
from boneage_jax.data.find_files import find_images
from boneage_jax.inference.predict_files import write_predictions
from boneage_jax.inference.predictor import Predictor, load_predictor
from boneage_jax.inference.read_ahead import decoding_threads, read_ahead

COLUMNS = ("kind", "round", "files", "seconds")


def decode(predictor: Predictor, files: list[Path]) -> None:
    """Decodes all files and makes squares of them; nothing is put right or judged."""

    def square(file: Path) -> np.ndarray:
        return fit_square(read_radiograph(file)[0], predictor.image_size, "stretch")

    with decoding_threads() as pool:
        for _ in read_ahead(files, square, predictor.batch_size, pool):
            pass


def step(predictor: Predictor, files: list[Path], squares: list[np.ndarray]) -> None:
    """Runs the compiled step on as many images as there are files."""
    ready = list(itertools.islice(itertools.cycle(squares), len(files)))
    predictor.uncalibrated(ready, [-1] * len(ready))


def predict(predictor: Predictor, files: list[Path], output: Path) -> None:
    """Does what `predict --output=FILE.csv` does once the network is loaded."""
    write_predictions(predictor, files, {}, output)


def main() -> None:
    """Takes turns and writes as it goes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--images", required=True)
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--network")
    args = parser.parse_args()
    prepare_jax()
    found = find_images([args.images])
    files = list(itertools.islice(itertools.cycle(found), args.count))
    predictor = load_predictor(args.network)
    squares = [predictor.fit(read_radiograph(file)[0], "") for file in found[:64]]
    predictor.read(squares)  # compiles
    args.output.parent.mkdir(parents=True, exist_ok=True)
    seconds = defaultdict(list)
    with args.output.open("w", newline="") as file, tempfile.TemporaryDirectory() as scratch:
        rows = Path(scratch, "ages.csv")
        kinds: dict[str, Callable[[], None]] = {
            "decode": lambda: decode(predictor, files),
            "step": lambda: step(predictor, files, squares),
            "predict": lambda: predict(predictor, files, rows),
        }
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for number, (kind, run) in itertools.product(range(args.rounds), kinds.items()):
            began = time.perf_counter()
            run()
            seconds[kind].append(time.perf_counter() - began)
            writer.writerow([kind, number, len(files), f"{seconds[kind][-1]:.3f}"])
            file.flush()
            print(f"{kind}: {seconds[kind][-1]:.1f} s", flush=True)
    shares = [(d + s) / p for d, s, p in zip(*(seconds[kind] for kind in kinds), strict=True)]
    settings = vars(args) | {"images": Path(args.images).name, "output": args.output.name}
    write_provenance(
        args.output,
        settings,
        distinct_files=len(found),
        median_seconds={kind: statistics.median(values) for kind, values in seconds.items()},
        share_of_decoding_and_step=statistics.median(shares),
    )
    print(f"predict at {statistics.median(shares):.2f} of what decoding and the step allow")


if __name__ == "__main__":
    main()

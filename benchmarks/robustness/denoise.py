"""What filtering noisy radiographs before they are read would save (docs/robustness.md).

usage: python -m benchmarks.robustness.denoise --workdir=DIR --output=FILE.csv [--images=400]

Adds the noise of the table of stresses to stored validation radiographs and reads them as they are
and after filters of OpenCV: Gaussian, median, bilateral (Tomasi and Manduchi 1998) and non-local
means (Buades et al. 2005), and a mean of the last with the noisy picture.
"""

import argparse
import itertools
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from benchmarks.provenance import write_rows
from boneage_jax.datasets import open_dataset
from boneage_jax.inference.load_trained import load_trained
from boneage_jax.runtime.compile_cache import use_compile_cache

_NOISE = 12.0  # standard deviation in grey levels

Filter = Callable[[np.ndarray], np.ndarray]


def local_means(strength: float, patch: int, around: int) -> Filter:
    """Builds non-local means; `strength` in grey levels, `patch` and `around` in pixels."""
    return lambda image: cv2.fastNlMeansDenoising(image, None, strength, patch, around)


def half(filtered: Filter) -> Filter:
    """Builds the mean of a filtered picture and the picture itself."""
    return lambda image: cv2.addWeighted(image, 0.5, filtered(image), 0.5, 0.0)


FILTERS: dict[str, Filter] = {
    "none": lambda image: image,
    "Gaussian, 0.6 px": lambda image: cv2.GaussianBlur(image, (0, 0), 0.6),
    "Gaussian, 1 px": lambda image: cv2.GaussianBlur(image, (0, 0), 1.0),
    "median of 3 x 3": lambda image: cv2.medianBlur(image, 3),
    "bilateral": lambda image: cv2.bilateralFilter(image, 5, 36, 1.5),
    "non-local means, 6": local_means(6, 3, 7),
    "non-local means, 10": local_means(10, 5, 11),
    "half of non-local means, 10": half(local_means(10, 5, 11)),
}


def main() -> None:
    """Writes one line for the radiographs untouched and one per filter of the noisy ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--images", type=int, default=400)
    args = parser.parse_args()
    use_compile_cache()
    trained = load_trained(args.workdir, task="bone_age")
    network = trained.network
    split = open_dataset(network.config.data).split(network.config.data.eval_split)
    stored = [np.asarray(image) for image in itertools.islice(split.images(), args.images)]
    ages = np.asarray(split.labels["bone_age"][: len(stored)], np.float64)
    sexes = np.asarray(split.labels["male"][: len(stored)], np.int32)

    def line(name: str, images: list[np.ndarray]) -> dict[str, str]:
        found = []
        for at in range(0, len(images), network.batch_size):
            part = slice(at, at + network.batch_size)
            (rows,) = network.read([trained.variables], images[part], {"male": sexes[part]})
            found.append(rows["predicted_age"])
        error = np.concatenate(found) - ages
        values = {"mae": np.abs(error).mean(), "bias": error.mean()}
        row = {"pictures": name} | {key: f"{value:.3f}" for key, value in values.items()}
        print(row, flush=True)
        return row | {"n": str(len(images))}

    rng = np.random.default_rng(0)
    noisy = [
        np.clip(np.round(image + rng.normal(0, _NOISE, image.shape)), 0, 255).astype(np.uint8)
        for image in stored
    ]
    table = [line("untouched", stored)]
    table += [
        line(f"noise, {name}", [smooth(image) for image in noisy])
        for name, smooth in FILTERS.items()
    ]
    write_rows(args.output, table, vars(args))


if __name__ == "__main__":
    main()

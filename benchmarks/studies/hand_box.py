"""Cuts radiographs to the box around the hand, to see what that is worth before training.

usage: python -m benchmarks.studies.hand_box --images=FOLDER --masks=FOLDER --output=FOLDER
           [--kind=square|box|equalized]

The masks are those of `python -m boneage_jax.segment`. `square` cuts a square around the hand,
`box` its bounding box, resized to a square; both with a margin, the background kept. `equalized`
cuts nothing and equalizes the histogram locally (CLAHE). Images without a hand stay as they are.
Trainings on the result, beside the CSV of the originals, tell what it is worth (docs/recipes.md).
"""

import argparse
import functools
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

_MARGIN = 1.06  # sides of the box
_LEAST = 0.03  # of the image: less is no hand


def cut(image: np.ndarray, mask: np.ndarray, kind: str) -> np.ndarray:
    """Returns the part around the hand at the size of the image, uint8 [H, W].

    Args:
      image: uint8 [H, W].
      mask: the same, 255 on the hand.
      kind: square | box.
    """
    rows, columns = np.nonzero(mask > 127)
    if len(rows) < _LEAST * mask.size:
        return image
    height, width = image.shape
    middle = (columns.min() + columns.max()) / 2, (rows.min() + rows.max()) / 2
    sides = np.array([np.ptp(columns) / width, np.ptp(rows) / height]) * _MARGIN
    if kind == "square":  # of the squashed image, so that proportions stay
        sides[:] = sides.max()
    offset = middle - sides * (width, height) / 2 + sides / 2 - 0.5
    matrix = np.array([[sides[0], 0, offset[0]], [0, sides[1], offset[1]]])
    edge = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    fill = float(np.median(edge))
    return cv2.warpAffine(image, matrix, (width, height), flags=flags, borderValue=fill)


def write(path: Path, masks: Path, output: Path, kind: str) -> None:
    """Writes one image, as a JPEG of quality 95."""
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if kind == "equalized":
        image = cv2.createCLAHE(2.0, (6, 6)).apply(image)
    else:
        mask = cv2.imread(str(masks / f"{path.stem}.png"), cv2.IMREAD_GRAYSCALE)
        image = cut(image, mask, kind)
    target = output / f"{path.stem}.jpg"
    cv2.imwrite(str(target), image, [cv2.IMWRITE_JPEG_QUALITY, 95])


def main() -> None:
    """Reads the command line and writes all images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    for name in ("images", "masks", "output"):
        parser.add_argument(f"--{name}", required=True, type=Path)
    parser.add_argument("--kind", default="square", choices=("square", "box", "equalized"))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    paths = sorted(path for path in args.images.iterdir() if path.is_file())
    job = functools.partial(write, masks=args.masks, output=args.output, kind=args.kind)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(job, paths))


if __name__ == "__main__":
    main()

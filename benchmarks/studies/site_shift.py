"""What `calibrate` takes back on radiographs of another site, simulated by shifts of known ones.

usage: python -m benchmarks.studies.site_shift --images=FOLDER --csv=FILE --ids=FILE
           --output=FILE.csv [--workdir=DIR|NAME] [--images_of_site=100] [--draws=20]

FILE of --csv has columns as `id,boneage,male`; that of --ids a column `id`, which names radiographs
that the network was not trained on: predictions.csv of a run of the same split does.
Each shift changes all of them as another department's would differ. A draw takes some as those that
the site has ages for, fits to them what `boneage_jax.calibrate` fits, and reads the others. A row
per shift: bias and error in months of the others as the network comes and after calibration, part
of them within the interval and accepted, as medians over the draws with the fifth and the 95th
percentile of the bias, and how often each correction was chosen.
"""

import argparse
import csv
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

import boneage_jax
from benchmarks.provenance import write_provenance
from benchmarks.robustness.stress import read_labels
from boneage_jax.data.file_names import image_stem
from boneage_jax.data.files import read_grey
from boneage_jax.data.find_files import find_images
from boneage_jax.data.label_table import read_table
from boneage_jax.evaluation.calibrate_run import best_method, fit_site
from boneage_jax.evaluation.stresses import gamma
from boneage_jax.inference.predictor import Predictor
from boneage_jax.runtime.compile_cache import use_compile_cache


class Shift(NamedTuple):
    """How the radiographs of a site differ.

    Attributes:
      draw: makes uint8 [H', W'] of uint8 [H, W].
      read: makes the site's bone ages in months of those of the data set, [n].
      youngest, oldest: the site's patients, in months of bone age.
    """

    draw: Callable[[np.ndarray], np.ndarray] = lambda image: image
    read: Callable[[np.ndarray], np.ndarray] = lambda ages: ages
    youngest: float = 0.0
    oldest: float = 240.0


def _exposed(power: float) -> Callable[[np.ndarray], np.ndarray]:
    draw = gamma(power)
    return lambda image: draw(image, np.random.default_rng(0))  # which it does not use


def _overexposed(image: np.ndarray) -> np.ndarray:
    """Saturates the brightest third of the grey levels."""
    return np.clip(image.astype(np.float32) * 1.5, 0, 255).astype(np.uint8)


def _pixels(part: float) -> Callable[[np.ndarray], np.ndarray]:
    def draw(image: np.ndarray) -> np.ndarray:
        size = (round(image.shape[1] * part), round(image.shape[0] * part))
        return cv2.resize(image, size, interpolation=cv2.INTER_AREA)

    return draw


def _close(image: np.ndarray) -> np.ndarray:
    """Cuts the margins off: the film ends close to the hand."""
    height, width = image.shape
    top, left = round(0.08 * height), round(0.08 * width)
    return image[top : height - top, left : width - left]


SHIFTS = {
    "none": Shift(),
    "dark: gamma 3": Shift(draw=_exposed(3.0)),
    "pale: gamma 0.3": Shift(draw=_exposed(0.3)),
    "overexposed: a third saturated": Shift(draw=_overexposed),
    "pixels three times as large": Shift(draw=_pixels(1 / 3)),
    "pixels five times as large": Shift(draw=_pixels(1 / 5)),
    "film ends close to the hand": Shift(draw=_close),
    "children below 8 years": Shift(oldest=96.0),
    "adolescents above 13 years": Shift(youngest=156.0),
    "a reader who is 6 months older": Shift(read=lambda ages: ages + 6.0),
    "a reader of another atlas: 8 % older": Shift(read=lambda ages: 1.08 * ages),
}


def shift_row(
    predictor: Predictor,
    shift: Shift,
    pictures: Sequence[np.ndarray],
    labels: np.ndarray,
    size: int,
    draws: int,
) -> dict[str, object]:
    """Returns the row of one shift.

    Args:
      predictor: the network as it comes.
      shift: what is done to pictures and ages.
      pictures: uint8 [H, W] each.
      labels: months and sex (1 male), [n, 2].
      size: radiographs that a site calibrates on.
      draws: repetitions.
    """
    there = (labels[:, 0] >= shift.youngest) & (labels[:, 0] <= shift.oldest)
    true, male = shift.read(labels[there, 0]), labels[there, 1].astype(int)
    kept = [shift.draw(each) for each, here in zip(pictures, there, strict=True) if here]
    squares = [predictor.fit(picture, "") for picture in kept]
    rows = predictor.uncalibrated(squares, male)
    raw = rows["predicted_age"].astype(np.float64)
    old = predictor.calibration
    assert old is not None
    rng = np.random.default_rng(0)
    found: list[list[float]] = []
    chosen: Counter[str] = Counter()
    for _ in range(draws):
        order = rng.permutation(len(true))
        site, others = order[:size], order[size:]
        method = best_method(raw[site], true[site])
        chosen[method] += 1
        fitted = fit_site(raw[site], true[site], [squares[n] for n in site], method, old)
        now = []
        for each in (predictor, predictor.with_calibration(fitted)):
            seen = each.calibrated(
                {key: values[others] for key, values in rows.items()},
                [squares[n] for n in others],
                male[others],
            )
            errors = seen["bone_age_months"] - true[others]
            inside = (seen["low_months"] <= true[others]) & (true[others] <= seen["high_months"])
            now += [errors.mean(), np.abs(errors).mean(), inside.mean(), seen["accepted"].mean()]
        found.append(now)
    middle = np.median(found, axis=0)
    low, high = np.percentile([each[4] for each in found], [5, 95])
    names = ["bias", "mae", "covered", "accepted"]
    columns = names + [f"{name}_calibrated" for name in names]
    return {
        "images": len(true),
        **{name: f"{value:.3f}" for name, value in zip(columns, middle, strict=True)},
        "bias_calibrated_low": f"{low:.3f}",
        "bias_calibrated_high": f"{high:.3f}",
        "corrections": " ".join(f"{name}={n}" for name, n in sorted(chosen.items())),
    }


def main() -> None:
    """Writes the table and prints its rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--workdir")
    parser.add_argument("--images", required=True)
    parser.add_argument("--csv", required=True, type=Path)
    parser.add_argument("--ids", required=True, type=Path)
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--images_of_site", type=int, default=100)
    parser.add_argument("--draws", type=int, default=20)
    args = parser.parse_args()
    use_compile_cache()
    labels = read_labels(args.csv)
    wanted = {row["id"] for _, row in read_table(args.ids).rows}
    files = [path for path in find_images([args.images]) if image_stem(path) in wanted]
    known = np.array([labels[image_stem(path)] for path in files])
    pictures = [read_grey(path) for path in files]
    predictor = boneage_jax.load_predictor(args.workdir)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with args.output.open("w", newline="") as file:
        writer = None
        for name, shift in SHIFTS.items():
            row = shift_row(predictor, shift, pictures, known, args.images_of_site, args.draws)
            writer = writer or csv.DictWriter(file, ["shift", *row], lineterminator="\n")
            if not file.tell():
                writer.writeheader()
            writer.writerow({"shift": name} | row)
            print(name, row, flush=True)
    write_provenance(args.output, vars(args))


if __name__ == "__main__":
    main()

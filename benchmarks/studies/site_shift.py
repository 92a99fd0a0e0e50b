"""What `calibrate` takes back on radiographs of another site, simulated by shifts of known ones.

usage: python -m benchmarks.studies.site_shift --images=FOLDER --csv=FILE --ids=FILE
           --output=FILE.csv [--workdir=DIR|NAME] [--images_of_site=100] [--draws=200]
           [--method=ridge]

FILE of --csv has columns as `id,boneage,male`; that of --ids a column `id`, which names radiographs
that the network was not trained on: predictions.csv of a run of the same split does.
Each shift changes all of them as another department's would differ. A draw takes some as those that
the site has ages for, fits to them what `boneage_jax.calibrate` fits, and reads the others. A row
per shift, in months or parts of the others, medians over the draws unless said otherwise:
  bias, mae, covered, accepted: as the network comes; bias is the mean signed error. What is
    accepted is measured in ten of the draws.
  *_calibrated: after calibration; *_low and *_high of the bias: its fifth and 95th percentile.
  bias_size*: |bias| and its quartiles _q1 and _q3.
  spread: standard deviation of the errors as the network comes; over the root of the number of the
    site's radiographs it is how well these tell the bias.
  bias_part: part of the mean squared error that is the square of the bias.
  mae_best_line: after the line fitted to the others themselves: what no number of radiographs of
    the site takes back by correcting ages.
"""

import argparse
import csv
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
from boneage_jax.evaluation.calibrate_run import fit_site
from boneage_jax.evaluation.stresses import gamma
from boneage_jax.inference.bias_correction import Correction
from boneage_jax.inference.calibration import Calibration
from boneage_jax.inference.predictor import Predictor
from boneage_jax.runtime.compile_cache import use_compile_cache

_JUDGED = 10  # draws of which the part that is accepted is measured, which takes long


class Shift(NamedTuple):
    """How the radiographs of a site differ.

    Attributes:
      draw: makes uint8 [H', W'] of uint8 [H, W].
      read: makes the site's bone ages in months of those of the data set, [n].
      youngest, oldest: the site's patients, in months of bone age.
    """

    draw: Callable[[np.ndarray], np.ndarray] = np.asarray  # as it is
    read: Callable[[np.ndarray], np.ndarray] = lambda ages: ages
    youngest: float = 0.0
    oldest: float = 240.0


def _exposed(power: float) -> Callable[[np.ndarray], np.ndarray]:
    draw = gamma(power)
    return lambda image: draw(image, np.random.default_rng(0))  # which it does not use


def _undone(power: float) -> Callable[[np.ndarray], np.ndarray]:
    """Exposes, then takes that back as well as 8 bits allow: the best that normalising could do."""
    there, back = _exposed(power), _exposed(1 / power)
    return lambda image: back(there(image))


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
    "dark, undone by gamma 1/3": Shift(draw=_undone(3.0)),
    "pale, undone by gamma 1/0.3": Shift(draw=_undone(0.3)),
    "overexposed: a third saturated": Shift(draw=_overexposed),
    "pixels three times as large": Shift(draw=_pixels(1 / 3)),
    "pixels five times as large": Shift(draw=_pixels(1 / 5)),
    "film ends close to the hand": Shift(draw=_close),
    "children below 8 years": Shift(oldest=96.0),
    "adolescents above 13 years": Shift(youngest=156.0),
    "a reader who is 6 months older": Shift(read=lambda ages: ages + 6.0),
    "a reader of another atlas: 8 % older": Shift(read=lambda ages: 1.08 * ages),
}


class Site(NamedTuple):
    """Radiographs of a site as the network sees them; months.

    Attributes:
      squares: uint8 [S, S] each.
      raw: predictions without correction, [n].
      judged: whether the view network accepts each, bool [n].
      true: bone ages, [n].
    """

    squares: Sequence[np.ndarray]
    raw: np.ndarray
    judged: np.ndarray
    true: np.ndarray

    def take(self, numbers: np.ndarray) -> "Site":
        """Returns those of some numbers, int [m]."""
        squares = [self.squares[n] for n in numbers]
        return Site(squares, self.raw[numbers], self.judged[numbers], self.true[numbers])


def read_site(
    predictor: Predictor,
    draw: Callable[[np.ndarray], np.ndarray],
    pictures: Sequence[np.ndarray],
    labels: np.ndarray,
) -> Site:
    """Reads all pictures under a shift; arguments as for `shift_row`."""
    squares = [predictor.fit(draw(picture), "") for picture in pictures]
    rows = predictor.uncalibrated(squares, labels[:, 1].astype(int))
    view = predictor.calibration.view if predictor.calibration else None
    judged = view.judge(squares)[0] if view else np.ones(len(squares), bool)
    return Site(squares, rows["predicted_age"].astype(np.float64), judged, labels[:, 0])


def measure(calibration: Calibration, site: Site) -> list[float]:
    """Returns bias and mean absolute error in months, and the part in the interval."""
    ages, _ = calibration.possible(calibration.correction(site.raw))
    low, high = calibration.interval(ages)
    errors = ages - site.true
    inside = (low <= site.true) & (site.true <= high)
    return [errors.mean(), np.abs(errors).mean(), inside.mean()]


def part_accepted(calibration: Calibration, site: Site) -> float:
    """Returns the part of the radiographs that are accepted; slow."""
    _, within = calibration.possible(calibration.correction(site.raw))
    near = calibration.distance(site.squares) <= calibration.max_distance
    return float((near & within & site.judged).mean())


def shift_row(
    site: Site, old: Calibration, size: int, draws: int, method: str
) -> dict[str, object]:
    """Returns the row of one shift.

    Args:
      site: its radiographs.
      old: the calibration that the network comes with.
      size: radiographs that a site calibrates on.
      draws: repetitions.
      method: of the correction.
    """
    rng = np.random.default_rng(0)
    found: list[list[float]] = []
    accepted: list[list[float]] = []
    limits: list[float] = []
    for number in range(draws):
        order = rng.permutation(len(site.true))
        known, others = site.take(order[:size]), site.take(order[size:])
        fitted = fit_site(known.raw, known.true, known.squares, method, old)
        found.append(measure(old, others) + measure(fitted, others))
        if number < _JUDGED:
            accepted.append([part_accepted(each, others) for each in (old, fitted)])
        best = Correction.fit(others.raw, others.true, "line")(others.raw)
        limits.append(float(np.abs(best - others.true).mean()))
    names = ["bias", "mae", "covered"]
    columns = names + [f"{name}_calibrated" for name in names]
    values = np.array(found)
    row = dict(zip(columns, np.median(values, axis=0), strict=True))
    row["accepted"], row["accepted_calibrated"] = np.median(accepted, axis=0)
    row["bias_calibrated_low"], row["bias_calibrated_high"] = np.percentile(values[:, 3], [5, 95])
    for name, of in (("bias_size", 0), ("bias_size_calibrated", 3)):
        quartiles = np.percentile(np.abs(values[:, of]), [50, 25, 75])
        row |= dict(zip((name, f"{name}_q1", f"{name}_q3"), quartiles, strict=True))
    errors = site.raw - site.true
    row |= {
        "spread": errors.std(),
        "bias_part": errors.mean() ** 2 / np.square(errors).mean(),
        "mae_best_line": np.median(limits),
    }
    return {"images": len(errors), **{name: f"{value:.3f}" for name, value in row.items()}}


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
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--method", default="ridge", help="of the correction, as for calibrate")
    args = parser.parse_args()
    use_compile_cache()
    labels = read_labels(args.csv)
    wanted = {row["id"] for _, row in read_table(args.ids).rows}
    files = [path for path in find_images([args.images]) if image_stem(path) in wanted]
    known = np.array([labels[image_stem(path)] for path in files])
    pictures = [read_grey(path) for path in files]
    predictor = boneage_jax.load_predictor(args.workdir, batch_size=64)
    assert predictor.calibration is not None
    sites: dict[Callable[[np.ndarray], np.ndarray], Site] = {}  # of the changes of pixels
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with args.output.open("w", newline="") as file:
        writer = None
        for name, shift in SHIFTS.items():
            if shift.draw not in sites:
                sites[shift.draw] = read_site(predictor, shift.draw, pictures, known)
            site = sites[shift.draw]
            there = (site.true >= shift.youngest) & (site.true <= shift.oldest)
            site = site.take(np.flatnonzero(there))._replace(true=shift.read(site.true[there]))
            row = shift_row(
                site, predictor.calibration, args.images_of_site, args.draws, args.method
            )
            writer = writer or csv.DictWriter(file, ["shift", *row], lineterminator="\n")
            if not file.tell():
                writer.writeheader()
            writer.writerow({"shift": name} | row)
            print(name, row, flush=True)
    write_provenance(args.output, vars(args))


if __name__ == "__main__":
    main()

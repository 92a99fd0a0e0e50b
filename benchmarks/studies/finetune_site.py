"""What `cls:finetune` gains on a hundred radiographs of another site, beside `calibrate`.

usage: python -m benchmarks.studies.finetune_site --images=FOLDER --csv=FILE --ids=FILE
           --work=FOLDER --output=FILE.csv [--images_of_site=100] [--shifts="NAME;NAME"]

Sites are those of `site_shift`, which names the files too. Some radiographs of each, drawn once,
are written to --work as PNG with a table of ages. `cls:finetune` trains on them as
`python -m boneage_jax.main` does, and `calibrate` fits to the same ones. The others are read by the
network as it comes and by both results. A row per site and network: bias and error in months, part
of the ages within the interval, FLOPs of both trainings.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from PIL import Image

import boneage_jax
from benchmarks.provenance import write_provenance
from benchmarks.robustness.stress import read_labels
from benchmarks.studies.site_shift import SHIFTS, Shift
from boneage_jax.cli import load_recipe, prepare_jax
from boneage_jax.data.file_names import image_stem
from boneage_jax.data.files import read_grey
from boneage_jax.data.find_files import find_images
from boneage_jax.data.label_table import read_table
from boneage_jax.evaluation.calibrate_run import fit_site
from boneage_jax.inference.predictor import Predictor

COLUMNS = (
    *("shift", "network", "site_images", "test_images", "bias", "mae", "mae_low", "mae_high"),
    *("covered", "train_flops"),
)


def write_site(
    folder: Path, names: list[str], pictures: list[np.ndarray], ages: np.ndarray, male: np.ndarray
) -> None:
    """Writes a folder of images with one table of their ages."""
    folder.mkdir(parents=True)
    with (folder / "ages.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id", "boneage", "male"])
        for name, picture, age, sex in zip(names, pictures, ages, male, strict=True):
            Image.fromarray(picture).save(folder / f"{name}.png")
            writer.writerow([name, f"{age:.2f}", bool(sex)])


def measured(
    predictor: Predictor, squares: list[np.ndarray], ages: np.ndarray, male: np.ndarray
) -> dict[str, object]:
    """Returns bias, error with its bootstrap interval, and coverage."""
    seen = predictor.calibrated(predictor.uncalibrated(squares, male), squares, male)
    errors = seen["bone_age_months"] - ages
    absolute = np.abs(errors)
    draws = np.random.default_rng(0).integers(0, len(errors), (2000, len(errors)))
    low, high = np.percentile(absolute[draws].mean(1), [2.5, 97.5])
    inside = (seen["low_months"] <= ages) & (ages <= seen["high_months"])
    return {
        "test_images": len(errors),
        "bias": f"{errors.mean():.3f}",
        "mae": f"{absolute.mean():.3f}",
        "mae_low": f"{low:.3f}",
        "mae_high": f"{high:.3f}",
        "covered": f"{inside.mean():.3f}",
    }


def site_rows(
    name: str,
    shift: Shift,
    files: list[Path],
    labels: np.ndarray,
    size: int,
    work: Path,
) -> list[dict[str, object]]:
    """Returns the rows of one site: the network as it comes, calibrated, fine-tuned."""
    order = np.random.default_rng(0).permutation(len(files))
    pictures = [shift.draw(read_grey(path)) for path in files]
    ages, male = shift.read(labels[:, 0]), labels[:, 1].astype(int)
    site, others = order[:size], order[size:]
    work = work / name.split(":")[0].replace(" ", "_")
    stems = [image_stem(files[n]) for n in site]
    write_site(work / "site", stems, [pictures[n] for n in site], ages[site], male[site])

    before = boneage_jax.load_predictor()
    squares = [before.fit(picture, "") for picture in pictures]
    test = [squares[n] for n in others]
    of_site = [squares[n] for n in site]
    raw = before.uncalibrated(of_site, male[site])["predicted_age"].astype(np.float64)
    assert before.calibration is not None
    fitted = fit_site(raw, ages[site], of_site, "ridge", before.calibration)

    config = load_recipe("cls:finetune")
    config.data.raw_dir, config.data.data_dir = str(work / "site"), str(work / "data")
    report = boneage_jax.train(config, work / "run")
    flops = f"{report['compute']['train_flops']:.4g}"  # those of the first training too
    tuned = boneage_jax.load_predictor(work / "run")
    again = [tuned.fit(pictures[n], "") for n in others]
    networks = [
        ("as it comes", before, test, ""),
        ("calibrated", before.with_calibration(fitted), test, ""),
        ("fine-tuned", tuned, again, flops),
    ]
    return [
        {"shift": name, "network": label, "site_images": size}
        | measured(predictor, read, ages[others], male[others])
        | {"train_flops": flops}
        for label, predictor, read, flops in networks
    ]


def main() -> None:
    """Writes the table and prints its rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--images", required=True)
    parser.add_argument("--csv", required=True, type=Path)
    parser.add_argument("--ids", required=True, type=Path)
    parser.add_argument("--work", required=True, type=Path, help="a folder that is not there yet")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--images_of_site", type=int, default=100)
    default = "none;dark: gamma 3;overexposed: a third saturated;pixels five times as large"
    parser.add_argument("--shifts", default=f"{default};a reader of another atlas: 8 % older")
    args = parser.parse_args()
    prepare_jax(trains=True)
    labels = read_labels(args.csv)
    wanted = {row["id"] for _, row in read_table(args.ids).rows}
    files = [path for path in find_images([args.images]) if image_stem(path) in wanted]
    known = np.array([labels[image_stem(path)] for path in files])
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with args.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for name in args.shifts.split(";"):
            rows = site_rows(name, SHIFTS[name], files, known, args.images_of_site, args.work)
            writer.writerows(rows)
            file.flush()
            print(*rows, sep="\n", flush=True)
    write_provenance(args.output, {k: v for k, v in vars(args).items() if k != "work"})


if __name__ == "__main__":
    main()

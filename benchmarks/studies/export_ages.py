"""Ages of an exported ONNX file beside those of `predict`, on radiographs that are not in order.

usage: python -m benchmarks.studies.export_ages --file=FILE.onnx --images=FOLDER --output=FILE.csv
           [--network=NAME] [--csv=LABELS] [--count=40]

The file is given squares as `fit_square` makes them, `predict` the radiographs themselves, as they
are and turned, inverted, framed and small. A row per radiograph and change: months and acceptance
of both, the true age where LABELS (columns `id,boneage,male`) has it, and whether anything but
quarter turns and inversion was undone, which the resolution matters for. The JSON beside it has
the differences of each change and the milliseconds of one image.
"""

import argparse
import csv
import statistics
import time
from pathlib import Path

import numpy as np
import onnxruntime

from benchmarks.provenance import write_provenance
from benchmarks.robustness.stress import read_labels
from boneage_jax.data.file_names import image_stem
from boneage_jax.data.files import fit_square, read_grey
from boneage_jax.data.find_files import find_images
from boneage_jax.evaluation.stresses import STRESSES
from boneage_jax.inference.predictor import load_predictor

CHANGES = (
    "untouched",
    "inverted",
    "turned by 90",
    "turned by 180",
    "turned by 270",
    "turned by 90, inverted",
    "turned by 45",
    "turned by 135",
    "white frame",
    "half size in a corner",
    "doubled",
)
COLUMNS = (
    "change",
    "file",
    "onnx_months",
    "months",
    "onnx_accepted",
    "accepted",
    "true_months",
    "cut",
)
_TIMED = 15  # runs of one image


def main() -> None:
    """Reads a change at a time and writes as it goes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--file", required=True, type=Path)
    parser.add_argument("--images", required=True)
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--network")
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--count", type=int, default=40)
    args = parser.parse_args()
    found = find_images([args.images])
    files = [found[n] for n in np.linspace(0, len(found) - 1, args.count).round().astype(int)]
    true = read_labels(args.csv) if args.csv else {}
    predict = load_predictor(args.network)
    side, fit = predict.image_size, str(predict.network.config.data.fit)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(args.file, options, providers=["CPUExecutionProvider"])
    outputs = ["bone_age_months", "accepted"]

    def run(squares: list[np.ndarray]) -> list[np.ndarray]:
        known = {"image": np.stack(squares)[..., None], "male": np.full(len(squares), -1, np.int32)}
        return session.run(outputs, {each.name: known[each.name] for each in session.get_inputs()})

    pictures, facts = [read_grey(file) for file in files], {}
    with args.output.open("w", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(COLUMNS)
        rng = np.random.default_rng(0)
        for change in CHANGES:
            changed = [STRESSES[change].draw(picture, rng) for picture in pictures]
            squares = [fit_square(picture, side, fit) for picture in changed]
            ours, theirs = run(squares), predict(changed)
            months, accepted = theirs["bone_age_months"], theirs["accepted"]
            ages = [true.get(image_stem(file), (np.nan,))[0] for file in files]
            view = predict.calibration.view
            cut = []  # or turned by an odd multiple of 45 degrees: by `predict`, or as a square
            for picture, square in zip(changed, squares, strict=True):
                said = "; ".join((*view.put_right(picture, square)[1], *view.put_right(square)[1]))
                cut.append(any(word in said for word in ("cut", " 45 ", " 135 ")))
            rows = zip(files, ours[0], months, ours[1], accepted, ages, cut, strict=True)
            for file, *numbers in rows:
                texts = (
                    round(float(x), 4) if isinstance(x, np.floating | float) else x for x in numbers
                )
                writer.writerow((change, image_stem(file), *texts))
            away = np.abs(ours[0] - months)
            facts[change] = {
                "mean_months": float(away.mean()),
                "median_months": float(np.median(away)),
                "most_months": float(away.max()),
                "over_1": int((away > 1).sum()),
                "cut": sum(cut),
                "most_months_of_others": float(away[~np.array(cut)].max(initial=0)),
                "accepted": int(ours[1].sum()),
                "acceptance_differs": int((ours[1] != accepted).sum()),
                "onnx_error": float(np.abs(ours[0] - ages).mean()),
                "error": float(np.abs(months - ages).mean()),
            }
            print(change, facts[change], flush=True)
    seconds = []
    for _ in range(_TIMED):
        began = time.perf_counter()
        run(squares[:1])
        seconds.append(time.perf_counter() - began)
    settings = {key: Path(x).name if isinstance(x, Path) else x for key, x in vars(args).items()}
    write_provenance(
        args.output,
        settings | {"images": Path(args.images).name},
        milliseconds_one_thread=1e3 * statistics.median(seconds),
        changes=facts,
    )


if __name__ == "__main__":
    main()

"""Ages of an ONNX file that removes the background inside, beside those of `predict`.

usage: python -m benchmarks.studies.export_masks --images=FOLDER --output=FILE.csv
           [--network=NAME] [--masks=NAME] [--count=40]

No published network was trained on radiographs without background, so one that was not is given a
U-Net as if it had been (mask_mode=multiply): its ages are of no use, and how far the two ways to
remove the background are apart is what they show. A row per radiograph: months and acceptance of
both, and the mean difference of their pictures in grey levels. The JSON beside it has the means.
"""

import argparse
import csv
import dataclasses
import time
from pathlib import Path

import jax
import numpy as np
import onnxruntime

from benchmarks.provenance import write_provenance
from boneage_jax.data.file_names import image_stem
from boneage_jax.data.files import read_grey
from boneage_jax.data.find_files import find_images
from boneage_jax.exporting.onnx_graph import to_onnx
from boneage_jax.exporting.program import age_program
from boneage_jax.inference.background_removal import Background
from boneage_jax.inference.predictor import Predictor, load_predictor

COLUMNS = ("file", "onnx_months", "months", "onnx_accepted", "accepted", "grey_levels")


def masked(network: str | None, masks: str) -> Predictor:
    """Returns the predictor of a network as if it had been trained without background."""
    predictor = load_predictor(network)
    info = dataclasses.replace(predictor.network.info, background="multiply")
    predictor._network = dataclasses.replace(predictor.network, info=info)
    predictor._background = Background(masks, "multiply")
    return predictor


def main() -> None:
    """Reads all and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--images", required=True)
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--network")
    parser.add_argument("--masks", default="rsna_unet_256")
    parser.add_argument("--count", type=int, default=40)
    args = parser.parse_args()
    found = find_images([args.images])
    files = [found[n] for n in np.linspace(0, len(found) - 1, args.count).round().astype(int)]
    program = age_program(masked(args.network, args.masks), {})
    assert program.hand_mask
    pictures = [read_grey(file) for file in files]
    given = np.stack([program.fit(picture, "") for picture in pictures])[..., None]
    theirs = [program.prepare(picture, "") for picture in pictures]
    ours = np.asarray(jax.jit(program.hand_mask.applied)(given))[..., 0]
    grey = np.abs(ours.astype(int) - np.stack(theirs)).mean((1, 2))
    wanted = program.read(theirs, [-1] * len(theirs))
    content = to_onnx(program).SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(images: np.ndarray) -> list[np.ndarray]:
        known = {"image": images, "male": np.full(len(images), -1, np.int32)}
        inputs = {each.name: known[each.name] for each in session.get_inputs()}
        return session.run(["bone_age_months", "accepted"], inputs)

    months, accepted = run(given)
    began = time.perf_counter()
    run(given)
    seconds = (time.perf_counter() - began) / len(given)
    with args.output.open("w", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(COLUMNS)
        for n, file in enumerate(files):
            ages = (round(float(x[n]), 4) for x in (months, wanted["bone_age_months"]))
            flags = (bool(x[n]) for x in (accepted, wanted["accepted"]))
            writer.writerow((image_stem(file), *ages, *flags, round(float(grey[n]), 4)))
    away = np.abs(months - wanted["bone_age_months"])
    settings = {key: Path(x).name if isinstance(x, Path) else x for key, x in vars(args).items()}
    same = program.read(list(ours), [-1] * len(ours))["bone_age_months"]
    facts = {
        "mean_months": float(away.mean()),
        "most_months": float(away.max()),
        "acceptance_differs": int((accepted != wanted["accepted"]).sum()),
        "most_months_from_jax": float(np.abs(months - same).max()),
        "mean_grey_levels": float(grey.mean()),
        "file_bytes": len(content),
        "milliseconds_per_image": 1e3 * seconds,
    }
    write_provenance(args.output, settings | {"images": Path(args.images).name}, **facts)
    print(facts)


if __name__ == "__main__":
    main()

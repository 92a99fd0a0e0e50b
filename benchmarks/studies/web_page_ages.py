"""Ages of the exported web page beside those of `predict`, in a headless Chromium.

usage: python -m benchmarks.studies.web_page_ages --page=PAGE.html --images=FOLDER --output=FILE.csv
           [--network=NAME] [--count=50]

Radiographs are dropped on the page as files, one after the other, as they are and turned, inverted
and framed. A row per radiograph and change: months and acceptance of both, seconds from the drop
to the age and to the end, heat map included, by the page's own clock. The JSON beside it has the
largest differences, and the seconds until the page was ready.
"""

import argparse
import csv
import statistics
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from benchmarks.provenance import write_provenance
from boneage_jax.data.files import read_radiograph
from boneage_jax.data.find_files import find_images
from boneage_jax.inference.predictor import load_predictor
from tests.support.chromium import Page

CHANGES = {
    "none": lambda image: image,
    "inverted": lambda image: 255 - image,
    "turned by 90": lambda image: np.rot90(image),
    "turned by 180": lambda image: image[::-1, ::-1],
    "framed": lambda image: np.pad(image, 40, constant_values=255),
}
COLUMNS = (
    "change",
    "file",
    "page_months",
    "months",
    "page_accepted",
    "accepted",
    "age_seconds",
    "seconds",
)

# Keeps the moments of a drop, of its age and of its end: to the millisecond, which asking the page
# again and again is not.
_WATCH = """
  window.moments = {};
  document.addEventListener("drop", () => (moments = { drop: performance.now() }), true);
  new MutationObserver(() => {
    if (document.querySelector(".age")) moments.age ??= performance.now();
    if (document.querySelector("article[aria-busy=false]")) moments.end ??= performance.now();
  }).observe(byId("results"), { subtree: true, childList: true, attributes: true });
"""


def main() -> None:
    """Reads one by one and writes as it goes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--page", required=True, type=Path)
    parser.add_argument("--images", required=True)
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--network")
    parser.add_argument("--count", type=int, default=50)
    args = parser.parse_args()
    found = find_images([args.images])
    files = [found[n] for n in np.linspace(0, len(found) - 1, args.count).round().astype(int)]
    predict = load_predictor(args.network)
    rows = []
    with tempfile.TemporaryDirectory() as scratch, args.output.open("w", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(COLUMNS)
        began = time.perf_counter()
        page = Page(args.page, Path(scratch, "profile"))
        page.wait("document.body && document.body.dataset.state != 'loading'")
        ready = time.perf_counter() - began
        page.evaluate(_WATCH)
        for change, apply in CHANGES.items():
            for file in files:
                path = Path(scratch, f"{file.stem}.png")
                cv2.imwrite(str(path), np.ascontiguousarray(apply(read_radiograph(file)[0])))
                page.evaluate("byId('clear').click()")
                page.drop([path])
                page.wait("document.querySelector('article[aria-busy=false]') !== null")
                age, whole = page.evaluate(
                    "[moments.age, moments.end].map((at) => (at - moments.drop) / 1000)"
                )
                months, accepted = page.evaluate(
                    "[...document.querySelectorAll('.age')].map((a) => "
                    "[Number(a.dataset.months), Number(a.dataset.accepted)])[0]"
                )
                theirs = predict([path])
                row = (change, file.stem, months, float(theirs["bone_age_months"][0]))
                row += (bool(accepted), bool(theirs["accepted"][0]), age, whole)
                rows.append(row)
                writer.writerow([round(x, 4) if isinstance(x, float) else x for x in row])
                out.flush()
                path.unlink()
        page.close()
    facts = {
        change: {
            "most_months": max(abs(r[2] - r[3]) for r in rows if r[0] == change),
            "over_0.1": sum(abs(r[2] - r[3]) > 0.1 for r in rows if r[0] == change),
            "acceptance_differs": sum(r[4] != r[5] for r in rows if r[0] == change),
        }
        for change in CHANGES
    }
    settings = vars(args) | {"page": args.page.name, "images": Path(args.images).name}
    write_provenance(
        args.output,
        settings | {"output": args.output.name},
        ready_seconds=ready,
        page_bytes=args.page.stat().st_size,
        age_seconds=statistics.median(r[6] for r in rows),
        age_seconds_most=max(r[6] for r in rows),
        seconds=statistics.median(r[7] for r in rows),
        seconds_most=max(r[7] for r in rows),
        changes=facts,
    )
    print(facts)


if __name__ == "__main__":
    main()

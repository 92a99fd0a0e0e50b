"""Segments many radiograph files: decodes, segments, writes and checks, in bounded memory."""

import csv
import errno
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from boneage_jax.data.counts import describe_counts, describe_notes
from boneage_jax.data.file_names import bare_name, image_stem
from boneage_jax.data.files import read_radiograph
from boneage_jax.data.find_files import find_images
from boneage_jax.errors import InputError
from boneage_jax.inference.output_names import open_folder
from boneage_jax.inference.read_ahead import decoding_threads, read_ahead
from boneage_jax.inference.segmenter import HandMaskFound, Segmenter, load_segmenter
from boneage_jax.report.contact_sheet import ContactSheet
from boneage_jax.runtime.progress import progress
from boneage_jax.storage.safe_write import in_one_piece

COLUMNS = (
    *("file", "mask", "area", "parts", "sides", "confidence", "look", "reasons", "error"),
    "note",
)

# Errors after which no mask can be written; others cost only the mask of one file.
_STOP = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES, errno.EPERM)


def segment_files(
    segmenter: Segmenter, files: Sequence[Path], output: Path, sheet: ContactSheet | None = None
) -> Iterator[dict[str, str]]:
    """Writes the mask of each file and yields one CSV row per file, in order.

    Decoding, cleaning and writing run in threads alongside the network; only a few batches are in
    memory, however many files there are.
    """

    def decode(file: Path) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
        image, notes = read_radiograph(file)
        return image, segmenter.fit(image), notes

    def finish(
        file: Path, image: np.ndarray, p_hand: np.ndarray, notes: Sequence[str]
    ) -> dict[str, str]:
        found = segmenter.finish(p_hand, *image.shape)
        try:
            _write_mask(_target(output, file), found.mask)
        except OSError as error:
            if error.errno in _STOP:
                raise
            return _failed(file, f"{file}: its mask cannot be written: {error.strerror}")
        if sheet is not None:
            sheet.add(bare_name(file), image, found.mask, found.check.reasons)
        return _row(file, output, found) | {"note": "; ".join(notes)}

    with decoding_threads() as pool:
        written: list[Future[dict[str, str]]] = []
        for results in read_ahead(files, decode, segmenter.batch_size, pool):
            good = [result for _, result in results if not isinstance(result, InputError)]
            squares = [square for _, square, _ in good]
            maps = iter(segmenter.probabilities(squares) if squares else ())
            yield from (future.result() for future in written)  # of the previous batch
            written = []
            for file, result in results:
                if isinstance(result, InputError):
                    written.append(pool.submit(_failed, file, str(result)))
                else:
                    image, _, notes = result
                    written.append(pool.submit(finish, file, image, next(maps), notes))
        yield from (future.result() for future in written)


def _failed(file: Path, error: str) -> dict[str, str]:
    return {"file": str(file), "look": "True", "error": error}


def _row(file: Path, output: Path, found: HandMaskFound) -> dict[str, str]:
    check = found.check
    return {
        "file": str(file),
        "mask": str(_target(output, file)),
        "area": f"{check.area:.4f}",
        "parts": str(check.parts),
        "sides": str(check.sides),
        "confidence": f"{check.confidence:.4f}",
        "look": str(bool(check.reasons)),
        "reasons": "; ".join(check.reasons),
    }


def _target(output: Path, file: Path) -> Path:
    return output / f"{bare_name(file)}.png"


def _write_mask(path: Path, mask: np.ndarray) -> None:
    # Masks have long runs: level 1 is three times faster than the default and hardly larger.
    data = cv2.imencode(".png", mask.astype(np.uint8) * 255, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1]
    with in_one_piece(path) as part:
        part.write_bytes(data.tobytes())


def segment(
    workdir: str | Path | None,
    paths: Sequence[str],
    output: Path,
    *,
    largest: bool,
    fill: bool,
) -> dict[str, Any]:
    """Writes the masks and the review of files, see `python -m boneage_jax.segment --help`.

    Returns:
      Contents of review/summary.json.

    Raises:
      InputError: no such file or run, two files with the same stem, or the output cannot be
        written.
    """
    left_out: Counter[str] = Counter()
    files = find_images(paths, left_out)
    stems: dict[str, Path] = {}
    for file in files:
        other = stems.setdefault(image_stem(file), file)
        if other != file:
            remedy = (
                "rename or remove one"
                if other.parent == file.parent
                else "segment their folders one by one, each into its own --output"
            )
            raise InputError(
                f"{other} and {file} would have the same mask {bare_name(file)}.png; {remedy}"
            )
    review = output / "review"
    open_folder(output, files, "--output")
    try:
        for file in files:
            target = _target(output, file)
            # By file identity: a link or another spelling of the folder names the same files.
            if target.exists() and target.samefile(file):
                raise InputError(
                    f"--output={output} holds the radiographs themselves; name another folder"
                )
        review.mkdir(exist_ok=True)
        (review / "contact_sheet.png").unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"--output={output} cannot be written: {error.strerror}") from error

    segmenter = load_segmenter(workdir, largest=largest, fill=fill)
    segmenter.warm_up()  # not timed
    sheet, began = ContactSheet(), time.monotonic()
    counts = {"images": 0, "unreadable": 0, "to_look_at": 0}
    notes: Counter[str] = Counter()
    try:
        with (
            in_one_piece(review / "masks.csv") as part,
            part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as table,
        ):
            writer = csv.DictWriter(table, COLUMNS, restval="", lineterminator="\n")
            writer.writeheader()
            rows = segment_files(segmenter, files, output, sheet)
            for row in progress(rows, total=len(files), unit="image"):
                writer.writerow(row)
                failed = bool(row.get("error"))
                notes.update(filter(None, row.get("note", "").split("; ")))
                counts["images"] += not failed
                counts["unreadable"] += failed
                counts["to_look_at"] += row["look"] == "True" and not failed
                if failed:
                    tqdm.write(f"left out {row['error']}", file=sys.stderr)
        seconds = time.monotonic() - began
        sheet.save(review / "contact_sheet.png")
        summary = counts | {
            "seconds": seconds,
            "images_per_second": len(files) / seconds,
            "flops_per_mask": segmenter.flops_per_mask,
            "train_flops": segmenter.train_flops,
            "left_out": dict(left_out),
            "notes": dict(notes),
        }
        (review / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    except OSError as error:
        raise InputError(f"--output={output} cannot be written: {error.strerror}") from error
    return summary


def describe(summary: Mapping[str, Any]) -> list[str]:
    """Returns lines for the user on what `segment` left out, and on how files were read."""
    left_out, notes = Counter(summary["left_out"]), Counter(summary["notes"])
    return [
        *([f"left out {left_out.total()}: {describe_counts(left_out)}"] if left_out else []),
        *([f"notes: {describe_notes(notes)}"] if notes else []),
    ]

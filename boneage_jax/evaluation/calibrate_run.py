"""Fits the calibration of a network to radiographs of another site, without training.

The correction of ages is fitted, then the interval and the rejection of other images, see
`boneage_jax.inference.calibration`. Errors are cross-fitted: no image is corrected by a fit that
has seen it. What this gives back on simulated sites: docs/radiographs.md.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np

from boneage_jax.data.counts import describe_counts
from boneage_jax.data.dicom_header import read_patient
from boneage_jax.data.file_names import image_stem
from boneage_jax.data.files import read_radiograph
from boneage_jax.data.find_files import find_images
from boneage_jax.data.label_table import plain_name
from boneage_jax.errors import InputError
from boneage_jax.evaluation.site_checks import (
    check_ages,
    check_range,
    check_sexes,
    check_strays,
)
from boneage_jax.inference.atlas_ages import AtlasAges, probability_of_male
from boneage_jax.inference.bias_correction import METHODS, Correction
from boneage_jax.inference.calibration import MIN_IMAGES, Calibration
from boneage_jax.inference.load_trained import load_members
from boneage_jax.inference.patients import FROM_HEADER, SEXES_DIFFER, identify
from boneage_jax.inference.predictor import Predictor, load_predictor
from boneage_jax.inference.publish import check_new_folder, write_published
from boneage_jax.inference.read_ahead import decoding_threads, read_ahead
from boneage_jax.runtime.progress import progress
from boneage_jax.storage.layout import CALIBRATION, SITE
from boneage_jax.storage.shipped import best_network, open_network
from tfds_rsna.radiograph_folder.columns import Columns
from tfds_rsna.radiograph_folder.table import Label, read_labels

_FOLDS = 10
_NO_GAIN = "no gain is shown: the mean error may be chance, so the network as it is may be better"
_OPTION = re.compile(r"\b(file|age|sex)_column\b|\bage_unit\b|\bsex_values\b")


class Labelled(NamedTuple):
    """A radiograph with its age in months, and its sex: 1, 0, or -1 for unknown."""

    file: Path
    age: float
    male: int


@dataclasses.dataclass(frozen=True)
class Result:
    """How a calibration does on radiographs of a site.

    Attributes:
      mae, bias: mean absolute and mean error in months.
      bias_margin: months by which the bias may be off by chance, two standard errors.
      half_width: of the interval, in months.
      covered: number of images whose age is in the interval.
      accepted: number of images accepted as radiographs of a hand; None if not judged.
    """

    mae: float
    bias: float
    bias_margin: float
    half_width: float
    covered: int
    accepted: int | None


def calibrate(
    workdir: str | Path | None,
    paths: Sequence[str],
    table: Path,
    output: Path,
    *,
    columns: Columns | None = None,
    method: str = "ridge",
    masks: str = "",
) -> list[str]:
    """Writes a network with a calibration fitted to radiographs of a site.

    Args:
      workdir: what `load_predictor` takes; None for the best network that comes with the package.
      paths: radiographs, see `boneage_jax.data.find_files.find_images`.
      table: CSV or XLSX file with the age of each radiograph, and its sex if known.
      output: folder to write, absent or empty; a published network, without the radiographs.
      columns: names of the columns of the table, where they cannot be guessed.
      method: none, shift, line or ridge, see `Correction.fit` of
        `boneage_jax.inference.bias_correction`.
      masks: see `Predictor`.

    Returns:
      Lines for the user: what was read, and errors before and after.

    Raises:
      InputError: fewer than 30 readable radiographs with an age; a table that is damaged or does
        not tell which radiograph is meant; or as `load_predictor` and `write_published`.
    """
    if method not in METHODS:
        raise InputError(f"--method={method} must be one of {', '.join(METHODS)}")
    check_new_folder(output)
    labelled, lines = match_labels(paths, table, columns or Columns())
    _check_count(len(labelled), "")
    source = open_network(best_network() if workdir is None else workdir)
    predictor = load_predictor(source, masks=masks)
    if "bone_age_months" not in predictor.columns:
        raise InputError(f"{source} holds no network of bone ages, so there is nothing to fit")
    matched = len(labelled)
    labelled, squares, said = read_site(predictor, labelled)
    lines += said
    _check_count(len(labelled), f"; {said[0]}" if len(labelled) < matched else "")
    true = np.array([each.age for each in labelled])
    male = np.array([each.male for each in labelled])
    old = Calibration.load(source / CALIBRATION)
    names = [each.file.name for each in labelled]
    check_range(true, names, old.bounds[1])
    new, before, after, noted = _fit(predictor, old, squares, male, true, names, method)
    lines += noted
    summary = {
        "images": len(true),
        "method": method,
        "correction": dataclasses.asdict(new.correction),
        "before": dataclasses.asdict(before),
        "after": dataclasses.asdict(after),
    }
    members = load_members(source)
    write_published(members, source, output, calibration=new, card=False, more={SITE: summary})
    if (source / SITE).is_file():
        lines.append(
            f"{source}: its calibration is replaced; the correction is of uncalibrated ages"
        )
    return [*lines, *_describe(before, after, new.correction, len(true))]


def _fit(
    predictor: Predictor,
    old: Calibration,
    squares: Sequence[np.ndarray],
    male: np.ndarray,
    true: np.ndarray,
    names: Sequence[str],
    method: str,
) -> tuple[Calibration, Result, Result, list[str]]:
    """Returns the new calibration, how images do with the old one and with it, and lines."""
    rows = predictor.uncalibrated(squares, male)
    raw = rows["predicted_age"].astype(np.float64)
    if not np.isfinite(raw).all():
        raise InputError("the network gives no number for some of the radiographs; train it again")
    check_ages(raw, true)
    lines = check_strays(raw, true, names)
    check_sexes(rows["p_male"], male)
    takes_sex = predictor.takes_sex
    p_male = probability_of_male(male if takes_sex else np.full(len(male), -1), rows["p_male"])
    atlas, held_out, said = choose_atlas(raw, true, method, old.atlas, p_male)
    lines += said
    new = fit_site(raw, true, squares, method, dataclasses.replace(old, atlas=atlas), p_male)
    seen, now = (
        each.calibrated(rows, squares, male)
        for each in (predictor, predictor.with_calibration(new))
    )
    old_widths = old.half_widths(seen["bone_age_months"])
    before = _result(seen["bone_age_months"], old_widths, true, seen["accepted"])
    after = _result(*held_out, true, now["accepted"])
    return new, before, dataclasses.replace(after, half_width=new.half_width), lines


def choose_atlas(
    raw: np.ndarray,
    true: np.ndarray,
    method: str,
    atlas: AtlasAges | None,
    p_male: np.ndarray,
) -> tuple[AtlasAges | None, tuple[np.ndarray, np.ndarray], list[str]]:
    """Keeps the atlas of a network only if it helps: readers of a site may write other ages.

    Args:
      raw, true, method, p_male: see `held_out_predictions`.
      atlas: that of the network.

    Returns:
      (atlas or None, what `held_out_predictions` returns with it, lines for the user).
    """
    without = held_out_predictions(raw, true, method)
    if atlas is None:
        return None, without, []
    moved = held_out_predictions(raw, true, method, atlas, p_male)
    errors = [float(np.abs(ages - true).mean()) for ages, _ in (moved, without)]
    keep = errors[0] < errors[1]
    line = (
        f"ages of an atlas (config.test_atlas): {'kept' if keep else 'left out'}, mean absolute "
        f"error {errors[0]:.2f} months with and {errors[1]:.2f} without"
    )
    return (atlas, moved, [line]) if keep else (None, without, [line])


def fit_site(
    raw: np.ndarray,
    true: np.ndarray,
    squares: Sequence[np.ndarray],
    method: str,
    old: Calibration,
    p_male: np.ndarray | None = None,
) -> Calibration:
    """Returns the calibration of a site, which also knows ages, views and atlas of the old one.

    Args:
      raw, true: months [n], uncorrected predictions and true ages.
      squares: the images, uint8 [S, S] each.
      method: of the correction.
      old: the calibration that came with the network.
      p_male: probability of the male sex [n]; without it no atlas is kept.
    """
    ages = [age for age in (old.youngest, old.oldest, *true) if np.isfinite(age)]
    return Calibration.fit(
        raw,
        true,
        squares,
        method,
        training_ages=np.array(ages),
        view=old.view,
        atlas=None if p_male is None else old.atlas,
        p_male=p_male,
    )


def match_labels(
    paths: Sequence[str], table: Path, columns: Columns
) -> tuple[list[Labelled], list[str]]:
    """Matches radiographs with the rows of a table, by the names of their files without suffix.

    Returns:
      (radiographs with an age, in the order of their paths; lines for the user).

    Raises:
      InputError: see `find_images` and `read_labels`; no radiograph has a row, two have the same
        name, or two rows of one contradict each other.
    """
    left_out: Counter[str] = Counter()
    files = find_images(paths, left_out)
    try:
        labels, used, notes = read_labels(table, columns)
    except InputError as error:  # which names the options of a data set
        raise InputError(_OPTION.sub(r"--\g<0>", str(error))) from error
    by_stem: dict[str, Label] = {}
    for label in labels:
        stem = image_stem(PurePath(label.image.replace("\\", "/")))
        other = by_stem.setdefault(stem, label)
        if (other.age, other.male) != (label.age, label.male):
            raise InputError(
                f"{table} lines {other.line} and {label.line}: {label.image!r} has two ages or "
                "sexes; keep the right row"
            )
    found: dict[str, Labelled] = {}
    for file in files:
        stem = image_stem(file)
        if stem in found:
            raise InputError(
                f"{found[stem].file} and {file} have the same name, so {table} does not tell which "
                "is meant; rename one, or name folders without the other"
            )
        if stem in by_stem:
            found[stem] = Labelled(file, by_stem[stem].age, by_stem[stem].male)
    if not found:
        raise InputError(
            f"--csv={table}: column {used.file!r} names none of the {len(files)} radiographs, e.g. "
            f"{files[0].name!r}; name another with --file_column"
        )
    counts = {
        "radiographs without a row": len(files) - len(found),
        "rows without a radiograph": len(by_stem.keys() - found.keys()),
    }
    taken = f"columns file={used.file!r}, age={used.age!r} in {used.age_unit}"
    lines = [f"{table}: {len(found)} radiographs; {taken}, sex={used.sex or 'none'!r}"]
    if plain_name(used.age).startswith("age"):
        lines.append(f"{table}: {used.age!r} is read as bone age, not as the age of the patient")
    lines += [f"{table}: {note}" for note in notes]
    lines += [f"left out {left_out.total()}: {describe_counts(left_out)}"] if left_out else []
    return list(found.values()), lines + [f"{n} {what}" for what, n in counts.items() if n]


def held_out_predictions(
    predicted: np.ndarray,
    true: np.ndarray,
    method: str,
    atlas: AtlasAges | None = None,
    p_male: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Corrects each prediction, and gives it an interval, by what the images of other folds show.

    Args:
      predicted, true: months [n], uncorrected predictions and true ages.
      method: of the correction.
      atlas, p_male: see `Calibration.fit`.

    Returns:
      (corrected ages, half-widths of their intervals), months [n].
    """
    corrected, widths = np.array(predicted), np.zeros(len(true))
    fold = np.arange(len(true)) % _FOLDS
    blank = np.zeros((2, 1, 1), np.uint8)  # of the statistics of images, which do not matter here
    for number in range(_FOLDS):
        here, others = fold == number, fold != number
        sexes = (None, None) if p_male is None else (p_male[others], p_male[here])
        fitted = Calibration.fit(
            predicted[others], true[others], blank, method, atlas=atlas, p_male=sexes[0]
        )
        corrected[here] = fitted.ages(predicted[here], sexes[1])
        widths[here] = fitted.half_widths(corrected[here])
    return corrected, widths


def read_site(
    predictor: Predictor, labelled: Sequence[Labelled]
) -> tuple[list[Labelled], list[np.ndarray], list[str]]:
    """Reads radiographs of a site.

    Args:
      predictor: the network.
      labelled: the radiographs; a sex that the table lacks is that of the DICOM header, as in
        `predict`.

    Returns:
      (those that can be read, with their sexes; their pixels as the network reads them; lines for
      the user, on unreadable ones first).
    """

    def decode(each: Labelled) -> tuple[Labelled, np.ndarray, tuple[str, ...]]:
        square = predictor.fit(read_radiograph(each.file)[0], image_stem(each.file))
        patient = identify(each.male, read_patient(each.file), sex_matters=predictor.takes_sex)
        return each._replace(male=patient.male), square, patient.notes

    good: list[tuple[Labelled, np.ndarray, tuple[str, ...]]] = []
    errors: list[str] = []
    with decoding_threads() as pool, progress(total=len(labelled), unit="image") as bar:
        for batch in read_ahead(labelled, decode, predictor.batch_size, pool):
            for _, result in batch:
                if isinstance(result, InputError):
                    errors.append(str(result))
                else:
                    good.append(result)
            bar.update(len(batch))
    lines = [f"{len(errors)} radiographs unreadable, e.g. {errors[0]}"] if errors else []
    for note in (FROM_HEADER, SEXES_DIFFER):
        count = sum(note in notes for _, _, notes in good)
        lines += [f"{count} radiographs: {note}"] if count else []
    return [each for each, _, _ in good], [pixels for _, pixels, _ in good], lines


def _check_count(count: int, more: str) -> None:
    if count < MIN_IMAGES:
        raise InputError(
            f"{count} radiographs with an age are too few to calibrate: at least {MIN_IMAGES} are "
            f"needed, and 100 are better{more}"
        )


def _result(ages: np.ndarray, widths: np.ndarray, true: np.ndarray, accepted: np.ndarray) -> Result:
    errors = np.asarray(ages, np.float64) - true
    judged = accepted.dtype == bool
    return Result(
        float(np.abs(errors).mean()),
        float(errors.mean()),
        float(2 * errors.std(ddof=1) / np.sqrt(len(errors))),
        float(widths.mean()),
        int((np.abs(errors) <= widths).sum()),
        int(accepted.sum()) if judged else None,
    )


def _describe(before: Result, after: Result, correction: Correction, count: int) -> list[str]:
    now = f"age = {correction.slope:.3f} x age {correction.intercept:+.1f} months"
    both = (before, after)
    width, covered = (
        " -> ".join(texts)
        for texts in (
            [f"+-{each.half_width:.1f}" for each in both],
            [f"{each.covered} of {count} ({each.covered / count:.0%})" for each in both],
        )
    )
    chance = abs(before.bias) <= after.bias_margin
    taken = ["unknown" if each.accepted is None else f"{each.accepted}" for each in both]
    return [
        f"mean absolute error: {before.mae:.2f} -> {after.mae:.2f} months, cross-fitted",
        f"mean error: {before.bias:+.2f} -> {after.bias:+.2f} months, known to "
        f"+-{after.bias_margin:.1f} from {count} radiographs",
        f"correction: {now}",
        f"interval: {width} months; it holds the age of {covered} radiographs",
        f"accepted: {taken[0]} -> {taken[1]} of {count} radiographs",
        *([_NO_GAIN] if after.mae >= before.mae and chance else []),
    ]

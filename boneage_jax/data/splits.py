"""Splits a data set by id, stratified by age and sex, reproducibly from a seed."""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from boneage_jax.errors import InputError
from boneage_jax.ranges import Range

AGE_BAND_MONTHS = 12.0
_UNKNOWN = -1
_SHARE = Range(0, 1, "(]")


def stratified_split(
    ids: Sequence[Any] | np.ndarray,
    ages: Sequence[float] | np.ndarray | None,
    male: Sequence[int] | np.ndarray | None,
    fractions: Mapping[str, float],
    seed: int,
) -> dict[str, np.ndarray]:
    """Splits rows by id, stratified by sex and by one-year bands of age.

    All rows of one id go to the same part. Ids are sorted by sex, age band and a hash of
    `(seed, id)`, and the parts are distributed evenly along that order (systematic sampling with a
    random start), so every stratum, however small, is represented in proportion. The result depends
    on the set of ids, their labels and the seed, and not on the order of the rows.

    Args:
      ids: one id per row, compared as text; [n].
      ages: months, NaN for unknown; an id with several rows counts with their mean. None ignores
        age. [n]
      male: 1, 0 or -1 for unknown, which is a separate stratum; None ignores sex. [n]
      fractions: fraction of each part, all above 0 and at most 1 in total; the remainder is in no
        part.
      seed: different seeds give different splits.

    Returns:
      For each name in `fractions`, its rows in ascending order, int64. A part holds
      `fraction * (number of ids)` ids, rounded up or down.

    Raises:
      InputError: fractions out of range, a part would be empty, label columns of different
        lengths, an unknown code of sex, or an id that is both male and female.
    """
    _check_fractions(fractions)
    names = [_text(value) for value in ids]
    if not names:
        raise InputError("cannot split an empty data set: there is no id")
    unique, group = np.unique(np.asarray(names, dtype=object), return_inverse=True)
    bands = np.zeros(len(unique), int) if ages is None else _age_bands(ages, group, len(unique))
    sexes = np.zeros(len(unique), int) if male is None else _sexes(male, group, unique)

    keys = [_hash(seed, name) for name in unique]
    # Ages rise in one sex and fall in the next, so that neighbours are similar where sexes meet.
    slopes = np.where(sexes == 0, 1, -1)
    order = sorted(
        range(len(unique)), key=lambda i: (sexes[i], slopes[i] * bands[i], keys[i], unique[i])
    )
    dealt = np.roll(_deal(_part_sizes(fractions, len(unique))), _hash(seed, "start") % len(unique))
    part_of_id = np.empty(len(unique), int)
    part_of_id[order] = dealt
    part_of_row = part_of_id[group]
    return {name: np.flatnonzero(part_of_row == part) for part, name in enumerate(fractions)}


def parse_fractions(value: str | Mapping[str, float]) -> dict[str, float]:
    """Parses `train=0.8,test=0.2`, the form on the command line; a mapping is returned as a dict.

    Raises:
      InputError: the text has another form, a part is not train, validation or test, or fractions
        are out of range.
    """
    try:
        fractions = _parse_pairs(value) if isinstance(value, str) else dict(value)
        if fractions.keys() <= {"train", "validation", "test"}:
            if fractions:
                _check_fractions(fractions)
            return fractions
    except InputError:
        raise
    except (TypeError, ValueError):
        pass
    raise InputError(
        f"fractions is {value!r}; write it as train=0.8,validation=0.1,test=0.1 (or some of these)"
    )


def _parse_pairs(text: str) -> dict[str, float]:
    pairs = [item.split("=") for item in text.split(",") if item.strip()]
    fractions = {name.strip(): float(share) for name, share in pairs}
    if len(fractions) < len(pairs):
        raise ValueError("a part is given twice")
    return fractions


def _check_fractions(fractions: Mapping[str, float]) -> None:
    if not fractions:
        raise InputError("fractions names no part; give e.g. {'train': 0.8, 'validation': 0.2}")
    for name, value in fractions.items():
        if value not in _SHARE:
            raise InputError(f"fractions[{name!r}] is {value!r}; each share must be {_SHARE}")
    total = math.fsum(fractions.values())
    if total > 1 + 1e-9:
        given = ", ".join(f"{name} {value:g}" for name, value in fractions.items())
        raise InputError(f"fractions add up to {total:g} ({given}); at most 1 can be shared out")


def _part_sizes(fractions: Mapping[str, float], total: int) -> list[int]:
    """Returns largest-remainder rounded sizes; the last counts the ids that are in no part."""
    rest = max(0.0, 1 - math.fsum(fractions.values()))
    quotas = [value * total for value in (*fractions.values(), rest if rest > 1e-9 else 0.0)]
    sizes = [math.floor(quota + 1e-6) for quota in quotas]
    by_remainder = sorted(range(len(quotas)), key=lambda i: (sizes[i] - quotas[i], i))
    for part in by_remainder[: total - sum(sizes)]:
        sizes[part] += 1
    for name, size in zip(fractions, sizes, strict=False):
        if size == 0:
            raise InputError(
                f"split {name!r} would be empty: {fractions[name]:g} of {total} ids; "
                "raise its fraction or add images"
            )
    return sizes


def _deal(sizes: Sequence[int]) -> np.ndarray:
    """Returns a sequence in which part p occurs sizes[p] times, evenly spaced; int64."""
    parts = np.repeat(np.arange(len(sizes)), sizes)
    places = np.concatenate([(np.arange(size) + 0.5) / max(size, 1) for size in sizes])
    return parts[np.argsort(places, kind="stable")]


def _age_bands(ages: Sequence[float] | np.ndarray, group: np.ndarray, count: int) -> np.ndarray:
    values = _column("ages", ages, len(group)).astype(np.float64)
    known = np.isfinite(values)
    number = np.bincount(group[known], minlength=count)
    # Sorted first: a float sum depends on the order of its terms, and the split must not.
    ascending = np.flatnonzero(known)[np.argsort(values[known], kind="stable")]
    total = np.bincount(group[ascending], weights=values[ascending], minlength=count)
    bands = np.floor(total / np.maximum(number, 1) / AGE_BAND_MONTHS).astype(int)
    return np.where(number > 0, bands, _UNKNOWN)


def _sexes(male: Sequence[int] | np.ndarray, group: np.ndarray, unique: np.ndarray) -> np.ndarray:
    values = _column("male", male, len(group)).astype(int)
    wrong = sorted(set(values.tolist()) - {0, 1, _UNKNOWN})
    if wrong:
        raise InputError(f"male holds {wrong[0]}; it must be 1, 0 or -1 (unknown)")
    is_male = np.bincount(group[values == 1], minlength=len(unique)) > 0
    is_female = np.bincount(group[values == 0], minlength=len(unique)) > 0
    both = np.flatnonzero(is_male & is_female)
    if both.size:
        raise InputError(f"id {unique[both[0]]!r} is given as both male and female; correct it")
    return np.where(is_male, 1, np.where(is_female, 0, _UNKNOWN))


def _column(name: str, values: Iterable[Any], length: int) -> np.ndarray:
    column = np.asarray(values)
    if column.shape != (length,):
        raise InputError(f"{name} has shape {column.shape}, but there are {length} ids")
    return column


def _text(value: Any) -> str:
    return value.decode(errors="surrogateescape") if isinstance(value, bytes) else str(value)


def _hash(seed: int, text: str) -> int:
    data = f"{seed}:{text}".encode(errors="surrogateescape")  # an id may be no text
    digest = hashlib.blake2b(data, digest_size=8).digest()
    return int.from_bytes(digest, "big")

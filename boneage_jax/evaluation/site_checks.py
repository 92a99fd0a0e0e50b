"""Checks that a table of ages and sexes belongs to the radiographs of a site."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import spearmanr

from boneage_jax.errors import InputError

# Months between ages as the network reads them, but for a constant, and those of the table, median,
# and their rank correlation. The worst simulated site has 10 and 0.9, a table moved by some rows 50
# and 0.
_FAR, _IN_ORDER = 20.0, 0.5
_STRAY = 60.0  # months, likewise of one radiograph: six standard deviations of its error
_STRAYS = 0.05  # of all radiographs
_FEWEST, _AGREE = 20, 0.3  # sexes, and how many of them the network must see alike
_SHOWN = 3  # names in a message


def check_ages(raw: np.ndarray, true: np.ndarray) -> None:
    """Checks that ages of a table belong to the radiographs.

    Args:
      raw, true: months [n], uncorrected predictions and ages of the table.

    Raises:
      InputError: they are all the same, or far from those that the network reads and in another
        order. A narrow band of ages may be read in another order, but not far off.
    """
    apart = float(np.median(_away(raw, true)))
    if np.ptp(true) > 0:
        order = spearmanr(raw, true).statistic
        if not (apart > _FAR and order < _IN_ORDER):
            return
        found = f"order alike by {order:.2f} of 1"
    else:
        if apart <= _FAR:
            return
        found = f"all are {true[0]:g} months"
    raise InputError(
        f"the ages of the table do not follow those that the network reads ({found}, {apart:.0f} "
        "months apart): do rows and radiographs belong together, and is the column of ages right?"
    )


def check_range(true: np.ndarray, names: Sequence[str], greatest: float) -> None:
    """Checks that the network can give the ages of a table.

    Args:
      true: months [n].
      names: of the radiographs.
      greatest: months, the greatest age that the network can give; NaN if unknown.

    Raises:
      InputError: an age is above it.
    """
    above = np.flatnonzero(true > greatest)
    if len(above):
        texts = [f"{name}: {age:g} months" for name, age in zip(names, true, strict=True)]
        raise InputError(
            f"{_some(above, texts)}: above the {greatest:.0f} months that the network can give; "
            "correct the table or leave these rows out"
        )


def check_strays(raw: np.ndarray, true: np.ndarray, names: Sequence[str]) -> list[str]:
    """Finds single ages that cannot be those of their radiographs, as of a row in another unit.

    Args:
      raw, true: months [n], uncorrected predictions and ages of the table.
      names: of the radiographs.

    Returns:
      A line on them, for the user; none if there are none.

    Raises:
      InputError: there are more than a few.
    """
    away = _away(raw, true)
    order = np.argsort(-away, kind="stable")
    stray = order[away[order] > _STRAY]
    if not len(stray):
        return []
    texts = [f"{n}: {t:g} months, read {r:.0f}" for n, t, r in zip(names, true, raw, strict=True)]
    found = f"{len(stray)} of {len(true)} ages are more than {_STRAY:.0f} months from those read, "
    found += _some(stray, texts)
    if len(stray) > max(2, _STRAYS * len(true)):
        raise InputError(f"{found}; is their unit another, or do they belong to other radiographs?")
    return [f"{found}: look at them, the interval is as wide as they need"]


def check_sexes(p_male: np.ndarray, male: np.ndarray) -> None:
    """Checks that 1 is male in a table, where the network tells the sexes apart.

    Args:
      p_male: [n], by the network, which sees it in the radiograph alone.
      male: 1, 0, or -1 for unknown, [n].

    Raises:
      InputError: most sexes are the other way round.
    """
    known = male >= 0
    agree = (p_male[known] > 0.5) == (male[known] == 1)
    if known.sum() >= _FEWEST and agree.mean() < _AGREE:
        raise InputError(
            f"of {known.sum()} sexes of the table the network sees {(~agree).sum()} the other way "
            "round: which code is male? give --sex_values=male=CODE,female=CODE"
        )


def _away(raw: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Returns how far ages are apart, but for a constant, months [n]."""
    return np.abs(np.median(true - raw) + raw - true)


def _some(numbers: np.ndarray, texts: Sequence[str]) -> str:
    shown = [texts[number] for number in numbers[:_SHOWN]]
    return ", ".join([*shown, *(["..."] if len(numbers) > _SHOWN else [])])

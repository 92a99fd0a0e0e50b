"""Tables that do not belong to the radiographs of a site: in another unit, order or code."""

import numpy as np
import pytest

from boneage_jax.errors import InputError
from boneage_jax.evaluation.site_checks import check_ages, check_range, check_sexes, check_strays

NAMES = [f"{number}.png" for number in range(60)]


@pytest.fixture
def ages():
    """Ages that a network reads, and those of a table, in months."""
    rng = np.random.default_rng(0)
    true = rng.uniform(24, 216, 60)
    return true + 12 + rng.normal(0, 10, 60), true


@pytest.mark.parametrize("mixed", [True, False])
def test_ages_of_other_radiographs_are_refused(ages, mixed):
    read, true = ages
    with pytest.raises(InputError, match="do not follow those that the network reads"):
        check_ages(read, np.random.default_rng(1).permutation(true) if mixed else np.full(60, 100))


@pytest.mark.parametrize("band", [(24, 216), (118, 122)])
def test_biased_and_narrow_ages_are_not(band):
    """A bias of 30 months, errors of 12, a band of four months in which the order is chance."""
    rng = np.random.default_rng(1)
    ages = rng.uniform(*band, 100)
    check_ages(ages + 30 + rng.normal(0, 12, 100), ages)
    check_ages(ages + rng.normal(0, 12, 100), np.full(100, 120.0) if band[0] == 118 else ages)


def test_some_rows_in_years_are_refused_and_one_is_named(ages):
    read, true = ages
    assert check_strays(read, true, NAMES) == []
    oldest = np.argsort(-true)
    one, several = true.copy(), true.copy()
    one[oldest[0]] /= 12
    several[oldest[:7]] /= 12
    (line,) = check_strays(read, one, NAMES)
    assert line.startswith(f"1 of 60 ages are more than 60 months from those read, {oldest[0]}.png")
    assert f"{one[oldest[0]]:g} months, read {read[oldest[0]]:.0f}" in line
    with pytest.raises(InputError, match=r"7 of 60 ages.*\.\.\.; is their unit another"):
        check_strays(read, several, NAMES)


def test_ages_that_the_network_cannot_give_are_named(ages):
    _, true = ages
    check_range(true, NAMES, 228.0)
    check_range(true + 1000, NAMES, np.nan)  # unknown of old networks
    true[7] = 800
    with pytest.raises(InputError, match=r"^7\.png: 800 months: above the 228 months that the"):
        check_range(true, NAMES, 228.0)


def test_sexes_the_other_way_round_are_refused():
    rng = np.random.default_rng(0)
    male = rng.integers(0, 2, 40)
    p_male = np.clip(np.where(rng.random(40) < 0.85, male, 1 - male), 0.1, 0.9)
    check_sexes(p_male, male)
    check_sexes(1 - p_male[:15], male[:15])  # too few to tell
    check_sexes(rng.random(40), male)  # a network that does not know
    known = np.where(np.arange(40) < 5, -1, 1 - male)
    with pytest.raises(InputError, match=r"of 35 sexes .* the other way round.*--sex_values="):
        check_sexes(p_male, known)

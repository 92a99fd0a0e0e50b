"""Splits by id: sizes, strata, leakage, and independence of the order of the rows."""

import collections

import numpy as np
import pytest

from boneage_jax.data.splits import parse_fractions, stratified_split
from boneage_jax.errors import InputError

FRACTIONS = {"train": 0.8, "validation": 0.1, "test": 0.1}


def _population(count: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    ids = np.array([f"case-{i}" for i in range(count)])
    ages = np.clip(rng.normal(127, 41, count), 1, 228).astype(np.float32)
    male = rng.choice([1, 0, -1], count, p=[0.5, 0.4, 0.1])
    return ids, ages, male


def _members(ids, parts):
    return {name: set(np.asarray(ids)[rows].tolist()) for name, rows in parts.items()}


@pytest.mark.parametrize("count", [10, 37, 200, 1003])
def test_sizes_are_within_one_of_the_fractions_and_parts_are_disjoint(count):
    ids, ages, male = _population(count)
    parts = stratified_split(ids, ages, male, FRACTIONS, seed=3)
    for name, fraction in FRACTIONS.items():
        assert abs(len(parts[name]) - fraction * count) < 1
        assert parts[name].dtype == np.int64
    np.testing.assert_array_equal(np.sort(np.concatenate(list(parts.values()))), np.arange(count))


def test_fractions_below_one_leave_the_rest_out():
    ids, ages, male = _population(100)
    parts = stratified_split(ids, ages, male, {"train": 0.5, "validation": 0.2}, seed=0)
    assert [len(rows) for rows in parts.values()] == [50, 20]


def test_split_depends_on_ids_labels_and_seed_but_not_on_row_order():
    ids, ages, male = _population(300)
    order = np.random.default_rng(1).permutation(300)
    first = _members(ids, stratified_split(ids, ages, male, FRACTIONS, seed=7))
    shuffled = stratified_split(ids[order], ages[order], male[order], FRACTIONS, seed=7)
    assert _members(ids[order], shuffled) == first
    assert _members(ids, stratified_split(ids, ages, male, FRACTIONS, seed=8)) != first


def test_order_of_rows_does_not_matter_for_ids_with_several_ages():
    ids, ages, male = _population(60)
    ids, male = np.concatenate([ids] * 3), np.concatenate([male] * 3)
    ages = np.concatenate([ages, ages + 0.1, ages + 7.3])
    order = np.random.default_rng(5).permutation(len(ids))
    first = _members(ids, stratified_split(ids, ages, male, FRACTIONS, seed=2))
    again = stratified_split(ids[order], ages[order], male[order], FRACTIONS, seed=2)
    assert _members(ids[order], again) == first


def test_rows_of_one_id_stay_together():
    rng = np.random.default_rng(2)
    ids = rng.integers(0, 50, 400)
    parts = stratified_split(ids, rng.uniform(1, 228, 400), None, FRACTIONS, seed=0)
    seen = [set(ids[rows].tolist()) for rows in parts.values()]
    assert sum(map(len, seen)) == len(set().union(*seen)) == len(set(ids.tolist()))


def test_every_stratum_is_shared_in_proportion():
    """Systematic dealing: each sex-and-year cell is within two of its exact share."""
    ids, ages, male = _population(1200)
    cells = collections.Counter(zip(male.tolist(), (ages // 12).tolist(), strict=True))
    for seed in range(3):
        rows = stratified_split(ids, ages, male, FRACTIONS, seed=seed)["validation"]
        got = collections.Counter(
            zip(male[rows].tolist(), (ages[rows] // 12).tolist(), strict=True)
        )
        assert max(abs(got[cell] - 0.1 * size) for cell, size in cells.items()) < 2


def test_stratified_means_vary_less_than_random_ones():
    ids, ages, male = _population(400)
    rng = np.random.default_rng(0)
    stratified, random = [], []
    for seed in range(30):
        rows = stratified_split(ids, ages, male, FRACTIONS, seed=seed)["test"]
        stratified.append(ages[rows].mean())
        random.append(ages[rng.permutation(400)[:40]].mean())
    assert np.std(stratified) < np.std(random) / 2


def test_seeds_reach_every_id():
    """No id is tied to a part by its place in the order."""
    ids, ages, male = _population(30)
    tested = set()
    for seed in range(120):
        tested |= _members(ids, stratified_split(ids, ages, male, FRACTIONS, seed=seed))["test"]
    assert tested == set(ids.tolist())


def test_split_by_id_only_and_types_of_ids_agree():
    numbers = np.arange(40)
    parts = stratified_split(numbers, None, None, {"train": 0.8, "validation": 0.2}, seed=0)
    texts = [str(number).encode() for number in numbers]
    again = stratified_split(texts, None, None, {"train": 0.8, "validation": 0.2}, seed=0)
    for name, rows in parts.items():
        np.testing.assert_array_equal(rows, again[name])
    assert len(parts["validation"]) == 8


def test_ids_may_be_of_any_bytes():
    ids = [b"H\xe4nd", b"hand", "H\udce4nd", "hand"]
    rows = stratified_split(ids, None, None, {"a": 0.5, "b": 0.5}, seed=0)
    assert sorted(tuple(part) for part in rows.values()) == [(0, 2), (1, 3)]


@pytest.mark.parametrize(
    "text", ["train=0,8", "train:0.8", "train=0.5,train=0.5", "val=1", "train=x"]
)
def test_fractions_of_another_form_are_refused(text):
    with pytest.raises(InputError, match=r"write it as train=0\.8,"):
        parse_fractions(text)


def test_unknown_ages_are_a_stratum_of_their_own():
    ages = np.array([np.nan] * 20 + [100.0] * 20)
    rows = stratified_split(np.arange(40), ages, None, {"a": 0.5, "b": 0.5}, seed=0)["a"]
    assert np.sum(rows < 20) == 10


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ({}, "names no part"),
        ({"train": 0.8, "test": 0.3}, "add up to 1.1"),
        ({"train": 1.0, "test": 0.0}, "'test'"),
        ({"train": float("nan")}, "'train'"),
        ({"train": "half"}, r"'train'.* must be in \(0, 1\]"),
        ({"train": True}, "'train'"),
        ({"train": 0.99, "test": 0.01}, "'test' would be empty"),
    ],
)
def test_bad_fractions_are_refused(fractions, message):
    ids, ages, male = _population(10)
    with pytest.raises(InputError, match=message):
        stratified_split(ids, ages, male, fractions, seed=0)


def test_bad_labels_are_refused():
    whole = {"train": 1.0}
    with pytest.raises(InputError, match="no id"):
        stratified_split([], None, None, whole, seed=0)
    with pytest.raises(InputError, match="'a' is given as both"):
        stratified_split(["a", "a"], None, [0, 1], whole, seed=0)
    with pytest.raises(InputError, match="male holds 2"):
        stratified_split(["a", "b"], None, [0, 2], whole, seed=0)
    with pytest.raises(InputError, match="ages has shape"):
        stratified_split(["a", "b"], [1.0], None, whole, seed=0)

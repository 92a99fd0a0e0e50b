"""Batches: what is in them, in which order, on any number of threads and processes."""

import itertools

import numpy as np
import pytest

from boneage_jax.data.loader import eval_batches, train_batches
from boneage_jax.data.source import standardization
from tests.support.tiny_task import memory_split

LABELS = ("bone_age", "male")


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def train(split, **options):
    options = {"seed": 3, "put": lambda batch: batch} | options
    return train_batches(split, LABELS, 8, **options)


@pytest.mark.parametrize("threads", [1, 5])
def test_batches_do_not_depend_on_threads(threads):
    split = memory_split(20)
    expected = take(train(split, threads=2), 6)
    for a, b in zip(expected, take(train(split, threads=threads), 6), strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def test_batches_of_one_image_hold_those_of_larger_batches():
    options = {"seed": 3, "put": lambda batch: batch}
    ones = take(train_batches(memory_split(20), LABELS, 1, **options), 8)
    np.testing.assert_array_equal(
        np.concatenate([batch["draw"] for batch in ones]), np.arange(8, dtype=np.uint32)
    )
    (whole,) = take(train(memory_split(20)), 1)
    np.testing.assert_array_equal(np.concatenate([b["image"] for b in ones]), whole["image"])


def test_each_epoch_is_a_permutation_and_epochs_differ():
    split = memory_split(24)
    values = np.concatenate([b["image"][:, 0, 0, 0] for b in take(train(split), 6)])
    first, second = values[:24], values[24:]
    np.testing.assert_array_equal(np.sort(first), np.arange(24))
    np.testing.assert_array_equal(np.sort(second), np.arange(24))
    assert (first != second).any() and (first != np.arange(24)).any()


def test_images_are_numbered_through_the_run_and_labels_stay_with_them():
    split = memory_split(20)
    batches = take(train(split), 5)
    draws = np.concatenate([b["draw"] for b in batches])
    np.testing.assert_array_equal(draws, np.arange(40))
    for batch in batches:
        index = batch["image"][:, 0, 0, 0]
        np.testing.assert_array_equal(batch["bone_age"], split.labels["bone_age"][index])
        np.testing.assert_array_equal(batch["male"], split.labels["male"][index])
        assert batch["image"].dtype == np.uint8 and batch["male"].dtype == np.int32


def test_processes_share_each_batch_without_overlap():
    split = memory_split(20)
    whole = take(train(split), 4)
    parts = [take(train(split, process=(p, 2)), 4) for p in range(2)]
    for step, batch in enumerate(whole):
        draws = np.concatenate([part[step]["draw"] for part in parts])
        images = np.concatenate([part[step]["image"] for part in parts])
        np.testing.assert_array_equal(np.sort(draws), batch["draw"])
        np.testing.assert_array_equal(images[np.argsort(draws)], batch["image"])


def test_an_iterator_goes_on_where_its_saved_state_stood():
    split = memory_split(20)
    iterator = train(split)
    take(iterator, 3)
    state = iterator.get_state()
    expected = take(iterator, 3)
    fresh = train(split)
    fresh.set_state(state)
    for a, b in zip(expected, take(fresh, 3), strict=True):
        np.testing.assert_array_equal(a["image"], b["image"])


@pytest.mark.parametrize("size", [1, 8, 21])
@pytest.mark.parametrize("count", [1, 2])
def test_evaluation_sees_each_image_once_and_pads_by_weight_zero(size, count):
    split = memory_split(size)
    batches = [
        batch
        for p in range(count)
        for batch in eval_batches(split, LABELS, 8, put=lambda b: b, process=(p, count))
    ]
    weight = np.concatenate([b["weight"] for b in batches])
    draw = np.concatenate([b["draw"] for b in batches])
    image = np.concatenate([b["image"] for b in batches])[:, 0, 0, 0]
    assert {len(b["weight"]) for b in batches} == {8 // count}
    assert weight.sum() == size
    np.testing.assert_array_equal(np.sort(draw[weight > 0]), np.arange(size))
    np.testing.assert_array_equal(image[weight > 0], draw[weight > 0])


def test_standardization_is_that_of_the_split():
    split = memory_split(50)
    mean, std = standardization(split)
    ages = split.labels["bone_age"]
    np.testing.assert_allclose([mean, std], [ages.mean(), ages.std()], rtol=1e-5)

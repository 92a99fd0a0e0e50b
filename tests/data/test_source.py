"""Opening a prepared data set: which splits there are, and what a config may cut from them."""

import pytest

from boneage_jax.config import base_config
from boneage_jax.datasets import open_dataset


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("data"))


def opened(data_dir, **changes):
    """Phantoms: 96 to train, 32 to validate, 32 to test."""
    config = base_config().data
    config.config, config.data_dir = "64-small", data_dir
    config.update(changes)
    dataset = open_dataset(config)
    return {name: set(split.labels["id"]) for name, split in dataset.splits.items()}


def test_official_splits_are_left_alone(data_dir):
    splits = opened(data_dir, test_fraction=0.3, validation_fraction=0.2)
    assert {name: len(ids) for name, ids in splits.items()} == {
        "train": 96,
        "validation": 32,
        "test": 32,
    }


def test_all_parts_can_be_cut_from_train(data_dir):
    official = opened(data_dir)
    splits = opened(data_dir, official_splits=False, test_fraction=0.25, validation_fraction=0.25)
    assert {name: len(ids) for name, ids in splits.items()} == {
        "train": 54,
        "validation": 18,
        "test": 24,
    }
    assert set().union(*splits.values()) == official["train"]
    assert not splits["test"] & (splits["train"] | splits["validation"])


def test_a_locked_test_part_is_the_validation_part_of_another_config(data_dir):
    """So what is chosen with it put away may be reported on it."""
    reported = opened(data_dir, official_splits=False, validation_fraction=0.25)["validation"]
    choosing = opened(data_dir, official_splits=False, test_fraction=0.25, validation_fraction=0.5)
    assert choosing["test"] == reported and "test" not in opened(data_dir, official_splits=False)


def test_a_part_is_locked_without_changing_what_is_validated(data_dir):
    cut = {"official_splits": False, "validation_fraction": 0.25}
    plain, locked = opened(data_dir, **cut), opened(data_dir, **cut, locked_fraction=0.125)
    assert locked["validation"] == plain["validation"]
    assert len(locked["locked"]) == 9  # an eighth of 72
    assert locked["train"] | locked["locked"] == plain["train"]
    assert not locked["train"] & locked["locked"]


def test_another_seed_cuts_other_parts(data_dir):
    cut = {"official_splits": False, "test_fraction": 0.25}
    first, second = (opened(data_dir, **cut, split_seed=seed)["test"] for seed in (0, 1))
    assert first == opened(data_dir, **cut)["test"] and first != second

"""The phantom: repeatable, the same at every size, grown after the published milestones."""

import subprocess
import sys

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

import tfds_rsna  # noqa: F401  (registers the builders)
from tfds_rsna.hand_phantom.render import draw_hand, make_phantom
from tfds_rsna.hand_phantom.skeleton import (
    CARPAL_ONSET,
    CARPALS,
    EPIPHYSES,
    carpal_size,
    epiphysis_width,
    fusion,
    grow_skeleton,
)


def test_another_process_draws_the_same_hands():
    code = (
        "from tfds_rsna.hand_phantom.render import make_phantom; import hashlib;"
        "print([hashlib.sha256(p.image.tobytes() + p.mask.tobytes()).hexdigest() + str(p.bone_age)"
        " for p in (make_phantom(i, 64, 'test') for i in range(3))])"
    )
    command = [sys.executable, "-c", code]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(2)]
    assert runs[0].stdout == runs[1].stdout
    assert make_phantom(0, 64, "train").bone_age != make_phantom(0, 64, "test").bone_age


@pytest.mark.parametrize("index", range(4))
def test_the_same_index_is_the_same_hand_at_every_size(index):
    large, small = make_phantom(index, 256), make_phantom(index, 128)
    assert (large.bone_age, large.male) == (small.bone_age, small.male)
    reduced = cv2.resize(large.image, (128, 128), interpolation=cv2.INTER_AREA)
    assert np.corrcoef(reduced.ravel(), small.image.ravel())[0, 1] > 0.98
    overlap = cv2.resize(large.mask, (128, 128), interpolation=cv2.INTER_AREA) & small.mask
    assert overlap.sum() > 0.97 * small.mask.sum()


@pytest.mark.parametrize("male", [True, False])
def test_ossification_follows_the_table(male):
    """Garn's order of onset: capitate and hamate first, the sesamoid last; sizes only grow."""
    for name in CARPALS:
        onset = CARPAL_ONSET[name].of(male)
        assert carpal_size(name, onset - 1, male) == 0 < carpal_size(name, onset + 1, male)
        sizes = [carpal_size(name, age, male) for age in range(0, 220, 6)]
        assert sizes == sorted(sizes) and sizes[-1] == 1
    count = {
        age: sum(c.name != "sesamoid" for c in grown(age, male).carpals) for age in (12, 60, 130)
    }
    assert count[12] == 2 and 3 <= count[60] <= 6 + (not male) and count[130] == 7


def grown(age, male):
    return grow_skeleton(age, male, np.random.default_rng(0))


@pytest.mark.parametrize("male", [True, False])
@pytest.mark.parametrize("kind", EPIPHYSES)
def test_epiphyses_appear_widen_and_fuse_once(kind, male):
    ages = range(6, 217, 3)
    widths = [epiphysis_width(kind, age, male) for age in ages]
    closed = [fusion(kind, age, male) for age in ages]
    assert widths == sorted(widths) and widths[0] == 0 and widths[-1] > 1
    assert closed == sorted(closed) and closed[0] == 0 and closed[-1] == 1
    # An epiphysis fuses after it has grown as wide as its metaphysis.
    assert widths[next(i for i, c in enumerate(closed) if c > 0)] >= 1


def test_girls_are_ahead_of_boys():
    for name, onset in CARPAL_ONSET.items():
        assert onset.girls <= onset.boys, name
    for kind, milestones in EPIPHYSES.items():
        assert all(m.girls < m.boys for m in milestones), kind


def test_distal_phalanges_fuse_first_and_the_radius_last():
    """Gilsanz & Ratib 2005."""
    ends = {kind: stages[2].boys for kind, stages in EPIPHYSES.items()}
    assert min(ends, key=ends.__getitem__) == "distal"
    assert max(ends, key=ends.__getitem__) == "radius"


def test_the_picture_shows_the_growth_plates_close():
    """Same draws, same pose: the older hand has bone where the younger had a gap."""
    young, old = (
        draw_hand(age, True, 256, np.random.default_rng(11)).image.astype(float)
        for age in (150.0, 205.0)
    )
    assert np.abs(young - old).max() > 40


@pytest.fixture(scope="module")
def sample():
    return [make_phantom(index, 64, "train") for index in range(240)]


def test_size_and_exposure_do_not_tell_the_age(sample):
    """A linear reader of hand area, brightness and contrast is no better than a weak guess."""
    ages = np.array([p.bone_age for p in sample])
    shortcuts = np.array(
        [[p.mask.mean(), p.image.mean(), p.image.std(), 1.0] for p in sample], np.float64
    )
    fit, *_ = np.linalg.lstsq(shortcuts[:160], ages[:160], rcond=None)
    residual = ages[160:] - shortcuts[160:] @ fit
    assert 1 - residual.var() / ages[160:].var() < 0.35
    assert abs(np.corrcoef(shortcuts[:, 0], ages)[0, 1]) < 0.4


def test_masks_are_hands_and_bones_lie_inside(sample):
    for phantom in sample[:40]:
        assert set(np.unique(phantom.mask)) == {0, 1}
        assert 0.08 < phantom.mask.mean() < 0.6
    ages = np.array([p.bone_age for p in sample])
    male = np.array([p.male for p in sample])
    assert ages.min() >= 6 and ages.max() <= 216 and 0.4 < male.mean() < 0.6


def test_the_builder_stores_what_is_drawn(tmp_path):
    builder = tfds.builder("hand_phantom/64-small", data_dir=str(tmp_path))
    builder.download_and_prepare()
    sizes = {name: split.num_examples for name, split in builder.info.splits.items()}
    assert sizes == {"train": 96, "validation": 32, "test": 32}
    records = list(builder.as_data_source(split="validation"))
    ids = {int(record["id"]) for record in records}
    assert ids == set(range(1_000_000, 1_000_032))
    for record in records[:5]:
        phantom = make_phantom(int(record["id"]) - 1_000_000, 64, "validation")
        np.testing.assert_array_equal(record["image"][..., 0], phantom.image)
        np.testing.assert_array_equal(record["mask"][..., 0], phantom.mask)
        assert record["bone_age"] == np.float32(phantom.bone_age)
        assert bool(record["male"]) == phantom.male

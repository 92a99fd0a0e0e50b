"""Ages that readers write down: the median label given an estimate."""

import jax.numpy as jnp
import numpy as np
import pytest

from boneage_jax.errors import InputError
from boneage_jax.inference.atlas_ages import AtlasAges, probability_of_male
from boneage_jax.inference.calibration import Calibration


def _random_atlas(seed):
    rng = np.random.default_rng(seed)
    ages = rng.choice(rng.integers(0, 241, 30), 500)
    return AtlasAges.fit(ages, rng.integers(0, 2, 500), rng.uniform(2, 12))


@pytest.mark.parametrize("seed", range(5))
def test_no_other_month_is_nearer_to_the_labels_on_average(seed):
    """By definition of the median; here every month is tried."""
    atlas, rng = _random_atlas(seed), np.random.default_rng(100 + seed)
    ages, p_male = rng.uniform(-20, 260, 40), rng.uniform(0, 1, 40)
    months = np.arange(241)
    for age, p, found in zip(ages, p_male, atlas(ages, p_male), strict=True):
        weights = np.zeros(241)
        for part, labels in zip((1 - p, p), atlas.counts, strict=True):
            nearness = -(((months - age) / atlas.deviation) ** 2) / 2
            nearness = np.where(labels > 0, nearness, -np.inf)
            of_sex = labels * np.exp(nearness - nearness.max())
            weights += part * of_sex / of_sex.sum()
        errors = np.abs(months[:, None] - months) @ weights
        assert errors[int(found)] == pytest.approx(errors.min(), rel=1e-6)


def test_girls_and_boys_have_atlases_of_their_own():
    atlas = AtlasAges.fit(np.array([94.0, 106, 96, 108]), np.array([0, 0, 1, 1]), 3.0)
    ages = np.array([97.0, 97.0, 103.0, 103.0])
    np.testing.assert_array_equal(atlas(ages, np.array([0.0, 1, 0, 1])), [94, 96, 106, 108])
    np.testing.assert_array_equal(
        probability_of_male(np.array([0, 1, -1]), np.array([0.9, 0.2, 0.7])), [0, 1, 0.7]
    )


def test_an_unknown_sex_weighs_as_the_network_says_not_as_training_had_it():
    """Ninety girls and ten boys: what the network says of the sex holds that already."""
    ages, male = np.repeat([100.0, 104.0], [90, 10]), np.repeat([0, 1], [90, 10])
    atlas = AtlasAges.fit(ages, male, 4.0)
    found = atlas(np.full(2, 102.0), np.array([0.45, 0.55]))
    np.testing.assert_array_equal(found, [100, 104])


def test_what_no_label_is_near_to():
    """The nearest label; ages of a sex without labels, and what is no number, stay."""
    atlas = AtlasAges.fit(np.array([60.0, 120.0]), np.array([0, 0]), 0.01)
    ages = np.array([-500.0, 89.0, 91.0, 1e20, np.nan, np.inf], np.float32)
    np.testing.assert_array_equal(atlas(ages, np.zeros(6)), [60, 60, 120, 120, np.nan, np.inf])
    np.testing.assert_array_equal(atlas(np.array([77.7]), np.ones(1)), [77.7])
    unknown = AtlasAges.fit(np.array([60.0]), np.array([-1]), 1.0)
    np.testing.assert_array_equal(unknown(np.array([50.0, 50.0]), np.array([0.0, 1])), [60, 60])


def test_readers_who_write_ages_of_plates_are_met_more_closely():
    """A sixth nearer to single readings, and no nearer to ages that lie between the plates."""
    rng = np.random.default_rng(0)
    age = rng.uniform(24, 216, 4000)
    written = np.rint((age + rng.normal(0, 4, 4000)) / 12) * 12
    atlas = AtlasAges.fit(written[:2000], np.zeros(2000), 4.0)
    estimate = age[2000:] + rng.normal(0, 2, 2000)
    found = atlas(estimate, np.zeros(2000))
    before, after = (np.abs(each - written[2000:]).mean() for each in (estimate, found))
    assert after < 0.85 * before
    assert np.abs(found - age[2000:]).mean() > np.abs(estimate - age[2000:]).mean()


def test_arrays_of_jax_give_the_same():
    atlas, rng = _random_atlas(1), np.random.default_rng(3)
    ages, p_male = (rng.uniform(0, top, 200).astype(np.float32) for top in (240, 1))
    found = atlas(jnp.asarray(ages), jnp.asarray(p_male))
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, atlas(ages, p_male))


def test_a_calibration_keeps_its_atlas(tmp_path):
    rng = np.random.default_rng(0)
    true, male = rng.choice([60.0, 84, 120, 156], 200), rng.integers(0, 2, 200)
    predicted = true + rng.uniform(-5, 5, 200) + 20
    images = [rng.integers(0, 255, (32, 32), np.uint8) for _ in range(2)]
    atlas = AtlasAges.fit(true, male, 4.0)
    given = {"atlas": atlas, "p_male": male.astype(float)}
    fitted = Calibration.fit(predicted, true, images, "shift", **given)
    # Corrected first, then moved: the shift is taken out, and each label is met.
    np.testing.assert_array_equal(fitted.ages(predicted, male.astype(float)), true)
    assert fitted.half_width == 0
    path = tmp_path / "calibration.npz"
    fitted.save(path)
    loaded = Calibration.load(path)
    np.testing.assert_array_equal(loaded.atlas.counts, atlas.counts)
    assert loaded.atlas.deviation == 4.0
    with pytest.raises(ValueError, match="p_male"):
        Calibration.fit(predicted, true, images, atlas=atlas)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("atlas_counts", np.full((2, 241), -1.0), "atlas"),
        ("atlas_counts", np.ones((2, 240)), "atlas_counts"),
        ("atlas_counts", np.full((2, 241), np.nan), "atlas_counts"),
        ("atlas_deviation", np.asarray(0.0), "atlas_deviation"),
    ],
)
def test_a_damaged_atlas_is_named(tmp_path, name, value, says):
    images = [np.zeros((32, 32), np.uint8)] * 2
    ones = np.ones(3)
    fitted = Calibration.fit(ones, ones, images, atlas=_random_atlas(0), p_male=ones)
    fitted.save(tmp_path / "calibration.npz")
    with np.load(tmp_path / "calibration.npz") as stored:
        arrays = dict(stored) | {name: value}
    np.savez(tmp_path / "calibration.npz", **arrays)
    with pytest.raises(InputError, match=rf"calibration\.npz is damaged \(.*{says}"):
        Calibration.load(tmp_path / "calibration.npz")

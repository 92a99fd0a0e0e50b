"""MixUp and CutMix: what is mixed, in which proportion, and with whom."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from boneage_jax.data.mix import MixConfig, mix
from boneage_jax.errors import InputError


def make_batch(count=6, side=16):
    rng = np.random.default_rng(0)
    return {
        "image": jnp.asarray(rng.normal(size=(count, side, side, 1)), jnp.float32),
        "bone_age": jnp.asarray(rng.uniform(10, 200, count), jnp.float32),
        "male": jnp.asarray([1, 0] * (count // 2), jnp.int32),
        "weight": jnp.ones(count),
    }


def keys_of(count=6, seed=0):
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(count))


def shares_of(before, after):
    """The share each image keeps of itself, read back from its age."""
    ages, new = np.asarray(before["bone_age"]), np.asarray(after["bone_age"])
    other = ages.reshape(-1, 2)[:, ::-1].ravel()
    return (new - other) / (ages - other)


def test_mixup_mixes_image_age_and_sex_in_one_proportion():
    batch = make_batch()
    mixed = mix(batch, keys_of(), MixConfig(mixup=1.0))
    share = shares_of(batch, mixed)
    assert np.all((share > 0) & (share < 1))
    images = np.asarray(batch["image"])
    partner = images.reshape(3, 2, 16, 16, 1)[:, ::-1].reshape(images.shape)
    weight = share[:, None, None, None]
    np.testing.assert_allclose(mixed["image"], weight * images + (1 - weight) * partner, atol=1e-4)
    np.testing.assert_allclose(mixed["male"], np.where(batch["male"] == 1, share, 1 - share), 1e-4)
    assert np.ptp(share) > 0.01  # each pair has a draw of its own


def test_cutmix_swaps_a_rectangle_and_its_area_is_the_share():
    batch = make_batch(count=40)
    mixed = mix(batch, keys_of(40), MixConfig(cutmix=1.0))
    images, new = np.asarray(batch["image"])[..., 0], np.asarray(mixed["image"])[..., 0]
    partner = images.reshape(20, 2, 16, 16)[:, ::-1].reshape(images.shape)
    kept = new == images
    assert np.all(kept | (new == partner))
    np.testing.assert_allclose(shares_of(batch, mixed), kept.mean((1, 2)), atol=1e-4)
    for swapped in ~kept:
        rows, columns = swapped.any(1), swapped.any(0)
        assert np.array_equal(swapped, rows[:, None] & columns[None])
        assert np.all(np.diff(np.flatnonzero(rows)) == 1)
    # Uniform shares of the area: their mean is 1/2, give or take 0.29 / sqrt(20).
    assert abs(kept.mean() - 0.5) < 3 * 0.29 / np.sqrt(20)


def test_the_mean_age_of_a_batch_stays():
    batch = make_batch()
    for config in (MixConfig(mixup=0.4), MixConfig(cutmix=1.0), MixConfig(mixup=1.0, cutmix=1.0)):
        mixed = mix(batch, keys_of(), config)
        np.testing.assert_allclose(mixed["bone_age"].mean(), batch["bone_age"].mean(), rtol=1e-5)


def test_an_image_of_unknown_sex_makes_its_mixture_unknown():
    batch = make_batch() | {"male": jnp.asarray([1, -1, -1, 0, 1, 0])}
    male = np.asarray(mix(batch, keys_of(), MixConfig(mixup=1.0))["male"])
    assert np.all(male[:4] == -1) and np.all((male[4:] > 0) & (male[4:] < 1))


def test_what_is_not_mixed_is_left_alone():
    batch = make_batch(count=60)
    keys = keys_of(60)
    for config in (MixConfig(), MixConfig(probability=0.0, mixup=1.0)):
        assert mix(batch, keys, config) is batch
    some = mix(batch, keys, MixConfig(probability=0.5, mixup=1.0))
    untouched = np.all(np.asarray(some["image"] == batch["image"]), axis=(1, 2, 3))
    np.testing.assert_array_equal(
        np.asarray(some["bone_age"])[untouched], np.asarray(batch["bone_age"])[untouched]
    )
    assert 0.2 < untouched.mean() < 0.8


def test_partners_do_not_depend_on_how_a_batch_is_cut():
    batch, keys, config = make_batch(8), keys_of(8), MixConfig(mixup=1.0, cutmix=1.0)
    whole = mix(batch, keys, config)
    half = mix(jax.tree.map(lambda x: x[4:], batch), keys[4:], config)
    np.testing.assert_allclose(whole["image"][4:], half["image"], rtol=1e-6)


@pytest.mark.parametrize(
    "values", [{"mixup": -0.1}, {"probability": 2.0}, {"cutmix": "yes"}, {"puzzle": 1.0}]
)
def test_wrong_values_are_named(values):
    with pytest.raises(InputError, match=next(iter(values))):
        MixConfig.from_dict(values)


def test_an_odd_batch_is_refused():
    batch = jax.tree.map(lambda x: x[:5], make_batch())
    with pytest.raises(InputError, match="odd"):
        mix(batch, keys_of(5), MixConfig(mixup=1.0))

"""The bone-age task: its losses against closed forms, and its label distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from boneage_jax.config import base_config, check_config
from boneage_jax.data.info import DataInfo
from boneage_jax.data.inputs import reading_inputs
from boneage_jax.errors import InputError
from boneage_jax.inference.eval_step import make_eval_step
from boneage_jax.tasks.bone_age import AGE_RANGE, bin_centers
from boneage_jax.tasks.registry import make_task
from configs import cls
from tests.support.tiny_task import plain_inputs, random_batch, tiny_task

MEAN, STD = 120.0, 40.0  # months, of tiny_task


def outputs_for(ages, logits=None):
    outputs = {
        "age": jnp.asarray((np.asarray(ages) - MEAN) / STD, jnp.float32),
        "sex_logit": jnp.zeros(len(ages)),
    }
    return outputs if logits is None else outputs | {"age_logits": jnp.asarray(logits)}


def labels(ages, male=None):
    male = [-1] * len(ages) if male is None else male
    return {"bone_age": jnp.asarray(ages, jnp.float32), "male": jnp.asarray(male)}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("l1", [0.25, 2.0]),
        ("mse", [0.0625, 4.0]),
        ("huber", [0.5 * 0.25**2, 2.0 - 0.5]),
    ],
)
def test_losses_are_of_the_standardised_age(name, expected):
    task = tiny_task(loss_name=name)
    loss, parts = task.loss(outputs_for([130.0, 40.0]), labels([120.0, 120.0]))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(parts["error"], [10.0, 80.0], rtol=1e-5)


def test_a_share_of_sexes_is_a_soft_label():
    task = tiny_task(sex_weight=1.0)
    outputs = outputs_for([120.0]) | {"sex_logit": jnp.asarray([0.7])}
    loss, _ = task.loss(outputs, labels([120.0], [0.3]))
    p = 1 / (1 + np.exp(-0.7))
    np.testing.assert_allclose(loss, -0.3 * np.log(p) - 0.7 * np.log(1 - p), rtol=1e-5)


def test_bins_cover_the_ages_in_equal_steps():
    months = np.asarray(bin_centers(80, MEAN, STD)) * STD + MEAN
    np.testing.assert_allclose(np.diff(months), 3.0)
    np.testing.assert_allclose([months[0] - 1.5, months[-1] + 1.5], AGE_RANGE, atol=1e-9)


def test_distribution_loss_is_the_divergence_from_a_normal_distribution():
    centers = bin_centers(240, MEAN, STD)
    months = np.asarray(centers) * STD + MEAN
    task = tiny_task(loss_name="distribution", centers=centers, sigma=10.0, sex_weight=0.0)
    wanted = scipy.stats.norm.pdf(months, 100.0, 10.0)
    wanted /= wanted.sum()
    other = scipy.stats.norm.pdf(months, 120.0, 10.0)
    other /= other.sum()
    loss, _ = task.loss(
        outputs_for([100.0, 120.0], np.log(np.stack([wanted, other]) + 1e-30)),
        labels([100.0, 100.0]),
    )
    # Between normal distributions of one width: distance^2 / (2 sigma^2), plus l1 of 20 months.
    np.testing.assert_allclose(loss, [0.0, 20.0 / STD + 20.0**2 / (2 * 100.0)], atol=1e-3)
    np.testing.assert_allclose(scipy.stats.entropy(wanted, other), 2.0, rtol=1e-3)


def test_the_age_is_the_mean_of_the_distribution():
    task = tiny_task(loss_name="distribution", centers=bin_centers(24, MEAN, STD))
    variables = task.init(jax.random.key(0), (16, 16, 1))
    kernel = variables["params"]["age_bins"]["kernel"]
    variables["params"]["age_bins"]["kernel"] = kernel * 100  # away from the flat start
    batch = plain_inputs(random_batch(4), None)
    outputs, _ = task.apply(variables, batch, train=False, keys=None)
    p = scipy.special.softmax(np.asarray(outputs["age_logits"], np.float64), axis=-1)
    expected = p @ np.linspace(5, 235, 24)
    got = task.predictions(outputs, {})["predicted_age"]
    np.testing.assert_allclose(got, expected, rtol=1e-4)
    assert np.ptp(expected) > 1e-3


def test_views_average_over_the_draws_of_training():
    """Against a loop by hand; the draws of an image do not depend on its place in the batch."""
    task = tiny_task()
    variables = task.init(jax.random.key(0), (16, 16, 1))
    seen = []

    def inputs(batch, keys):
        if keys is None:
            return plain_inputs(batch, None)
        noise = jax.vmap(lambda key: jax.random.normal(key, (16, 16, 1)))(keys)
        seen.append(keys.shape)
        return batch | {"image": batch["image"] / 255.0 + noise}

    batch = random_batch(4)
    step = jax.jit(make_eval_step(task, inputs, views=3))
    _, predictions = step(variables, batch)
    _, turned = step(variables, jax.tree.map(lambda x: x[::-1], batch))
    np.testing.assert_allclose(
        predictions["predicted_age"], turned["predicted_age"][::-1], rtol=1e-4
    )
    assert seen and all(shape == (4,) for shape in seen)

    ages = []
    for view in (None, 0, 1, 2):
        keys = None
        if view is not None:
            keys = jnp.broadcast_to(jax.random.fold_in(jax.random.key(0), view), (4,))
        outputs, _ = task.apply(variables, inputs(batch, keys), train=False, keys=None)
        ages.append(np.asarray(task.predictions(outputs, {})["predicted_age"]))
    np.testing.assert_allclose(predictions["predicted_age"], np.mean(ages, axis=0), rtol=1e-4)
    assert np.abs(np.asarray(ages[1]) - ages[0]).max() > 1e-3


def test_magnifications_are_averaged():
    """Against each alone; what is read twice at one magnification is read as once."""
    task = tiny_task()
    variables = task.init(jax.random.key(0), (16, 12, 1))
    config = base_config()
    config.data.height, config.data.width = 16, 12
    batch = random_batch(4, side=20)

    def ages(zooms):
        config.test_zooms = zooms
        inputs, *zoomed = reading_inputs(config)
        step = make_eval_step(task, inputs, zoomed=zoomed, flips=True)
        return np.asarray(jax.jit(step)(variables, batch)[1]["predicted_age"])

    alone = {zooms: ages(zooms) for zooms in ("1", "1.2", "0.9")}
    assert np.abs(alone["1"] - alone["1.2"]).min() > 1e-4
    np.testing.assert_allclose(ages("1,1.2,0.9"), np.mean(list(alone.values()), 0), rtol=1e-5)
    np.testing.assert_allclose(ages("1.2,1.2"), alone["1.2"], rtol=1e-5)
    np.testing.assert_array_equal(ages(""), alone["1"])


@pytest.mark.parametrize("zooms", ["1,", "one", "1;1.1", "3", "nan", "1," * 8 + "1"])
def test_magnifications_that_are_none_are_refused(zooms):
    config = base_config()
    config.test_zooms = zooms
    with pytest.raises(InputError, match=r"test_zooms.*magnifications"):
        reading_inputs(config)


def test_ages_can_be_learned_in_months():
    config = cls.get_config("earlier")
    info = DataInfo(image_size=32, train_images=64, age_mean=127.0, age_std=41.0)
    task = make_task(check_config(config), info, None)
    outputs = {"age": jnp.asarray([100.0]), "sex_logit": jnp.zeros(1)}
    loss, parts = task.loss(outputs, labels([130.0]))
    np.testing.assert_allclose([loss[0], parts["error"][0]], 30.0)
    np.testing.assert_allclose(task.predictions(outputs, {})["predicted_age"], 100.0)
    rows = {"predicted_age": [100.0], "true_age": [130.0], "male": [-1]}
    summary = task.summarize({key: np.asarray(value) for key, value in rows.items()})
    # Predicting the mean of the training split would be off by 3 months, not by 130.
    assert summary["age"]["baseline_mae"] == pytest.approx(3.0)


def test_metrics_count_each_image_of_any_weight_once():
    task = tiny_task()
    batch = labels([120.0, 120.0, 120.0, 120.0], [1, 0, -1, 1])
    batch["weight"] = jnp.asarray([1.0, 0.5, 0.0, 1.0])  # 0 fills up the last batch
    outputs = outputs_for([130.0, 100.0, 20.0, 121.0]) | {
        "sex_logit": jnp.asarray([2.0, 2.0, 2.0, 2.0])
    }
    loss, parts = task.loss(outputs, batch)
    values = task.metrics(loss, parts, outputs, batch).compute()
    assert values["mae"] == pytest.approx((10 + 20 + 1) / 3, rel=1e-5)
    assert values["sex_accuracy"] == pytest.approx(2 / 3, rel=1e-5)


def test_statistics_move_in_training_alone():
    task = tiny_task()
    batch = plain_inputs(random_batch(4), None)
    variables = task.init(jax.random.key(0), (16, 16, 1))
    keys = jax.random.split(jax.random.key(1), 4)
    for train in (False, True):
        _, stats = task.apply(variables, batch, train=train, keys=keys if train else None)
        same = jax.tree.map(np.array_equal, stats, variables["batch_stats"])
        assert all(jax.tree.leaves(same)) is not train

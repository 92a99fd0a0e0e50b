import jax.numpy as jnp
import numpy as np
import optax
import pytest

from boneage_jax.config import base_config
from boneage_jax.errors import InputError
from boneage_jax.training.optimizer import make_optimizer, make_schedule


def settings(**changes):
    config = base_config().optimizer
    config.update(changes)
    return config


def test_cosine_rises_peaks_and_ends_at_zero():
    schedule = make_schedule(settings(learning_rate=0.5, warmup=0.1), 100)
    rates = np.array([schedule(step) for step in (0, 5, 10, 55, 100)])
    np.testing.assert_allclose(rates, [0, 0.25, 0.5, 0.25, 0], atol=1e-6)


def test_one_cycle_peaks_at_the_warm_up_fraction():
    schedule = make_schedule(settings(schedule="one_cycle", learning_rate=1.0, warmup=0.25), 40)
    rates = np.array([schedule(step) for step in range(41)])
    assert rates.argmax() == 10
    np.testing.assert_allclose(rates[0], 1 / 25, rtol=1e-5)
    assert rates[-1] < 1e-4


def test_adamw_decays_kernels_only():
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    config = settings(schedule="constant", warmup=0.0, learning_rate=0.1, weight_decay=0.5)
    optimizer = make_optimizer(config, 10)
    grads = {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.05)  # -rate * decay * weight
    np.testing.assert_allclose(updates["bias"], 0)


@pytest.mark.parametrize("name", ["adam", "adamw", "lion", "sgd", "rmsprop"])
def test_every_optimizer_descends_a_parabola(name):
    decay = 0.0 if name not in ("adamw", "lion") else 1e-4
    config = settings(
        name=name, schedule="constant", warmup=0.0, learning_rate=0.02, weight_decay=decay
    )
    optimizer = make_optimizer(config, 200)
    params = jnp.array([3.0, -2.0])
    state = optimizer.init(params)
    for _ in range(200):
        updates, state = optimizer.update(2 * params, state, params)
        params = optax.apply_updates(params, updates)
    assert jnp.abs(params).max() < 1.0


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"schedule": "linear"}, "schedule"),
        ({"name": "adamax"}, "adamax"),
        ({"warmup": 1.0}, "warmup"),
        ({"name": "sgd", "weight_decay": 0.1}, "weight_decay"),
    ],
)
def test_wrong_settings_are_named(changes, word):
    with pytest.raises(InputError, match=word):
        make_optimizer(settings(**changes), 10)

"""The steps on one and on several simulated devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from boneage_jax.errors import InputError
from boneage_jax.inference.eval_step import make_eval_step
from boneage_jax.models.flops import count_flops
from boneage_jax.runtime.parallel import Parallel
from boneage_jax.storage.state import TrainState, flops_of
from boneage_jax.training.nonfinite import Watched
from boneage_jax.training.step import make_train_step
from tests.support.tiny_task import plain_inputs, random_batch, tiny_task


def new_state(task, optimizer, ema=False) -> TrainState:
    variables = task.init(jax.random.key(0), (16, 16, 1))
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables["batch_stats"],
        ema_params=jax.tree.map(jnp.copy, params) if ema else {},
        opt_state=optimizer.init(params),
        rng=jax.random.key_data(jax.random.key(1)),
        flops_spent=jnp.zeros(2, jnp.uint32),
    )


def run(mode, devices, steps=3, uneven=False, **options):
    """Final state, training metrics and compilations of a few steps."""
    parallel = Parallel(mode, jax.devices()[:devices])
    task = tiny_task(parallel.axis_name, dropout=0.3, sex_input=True)
    optimizer = optax.adam(1e-2)
    step = make_train_step(task, optimizer, plain_inputs, axis_name=parallel.axis_name, **options)
    state = parallel.put_state(new_state(task, optimizer, ema=bool(options.get("ema_decay"))))
    metrics = parallel.put_state(task.metrics_type.empty())
    train_step = parallel.train_step(functools.partial(step, flops=7))
    for number in range(steps):
        batch = random_batch(16, seed=number)
        if uneven:
            batch["weight"][:5] = 0.0
        state, metrics = train_step(state, metrics, parallel.put_batch(batch))
        jax.block_until_ready(state)
    return jax.device_get(state), jax.device_get(metrics).compute(), parallel.compilations


@pytest.mark.parametrize("options", [{}, {"accumulate": 2, "ema_decay": 0.9}, {"uneven": True}])
def test_pmap_and_jit_agree_on_any_number_of_devices(options):
    expected, metrics, _ = run("jit", 1, **options)
    for mode, devices in [("pmap", 1), ("jit", 4), ("pmap", 2), ("pmap", 4)]:
        state, others, compilations = run(mode, devices, **options)
        assert compilations == {"train": 1}
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5),
            (expected.params, expected.batch_stats, expected.ema_params, metrics),
            (state.params, state.batch_stats, state.ema_params, others),
        )
        assert flops_of(state.flops_spent) == 21 and state.step == 3


def test_counting_and_compiling_share_a_trace(monkeypatch):
    """Also with the metrics of a run, which the counter does without."""
    task, traced = tiny_task(), []
    apply = task.apply

    def watched(*args, **kwargs):
        traced.append(1)
        return apply(*args, **kwargs)

    monkeypatch.setattr(type(task), "apply", staticmethod(watched))
    optimizer = optax.adam(1e-2)
    step = make_train_step(task, optimizer, plain_inputs, ema_decay=0.9)
    state, batch = new_state(task, optimizer, ema=True), random_batch(8)
    empty = task.metrics_type.empty()
    flops = count_flops(step, state, empty, batch)
    jax.jit(functools.partial(step, flops=flops)).trace(state, Watched.begin(empty), batch)
    assert traced == [1] and flops > 0


def test_one_step_is_the_textbook_step():
    """SGD by hand: gradient of the weighted mean of the loss, times the rate."""
    task, batch = tiny_task(), random_batch(8)
    batch["weight"][0] = 0.0
    optimizer = optax.sgd(0.1)
    state = new_state(task, optimizer)

    def loss(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        inputs = plain_inputs(batch, None)
        outputs, _ = task.apply(
            variables, inputs, train=True, keys=jax.random.split(jax.random.key(5), 8)
        )
        return np.float32(1 / 7) * (task.loss(outputs, batch)[0] * batch["weight"]).sum()

    expected = jax.tree.map(lambda p, g: p - 0.1 * g, state.params, jax.grad(loss)(state.params))
    step = jax.jit(make_train_step(task, optimizer, plain_inputs))
    after, _ = step(state, task.metrics_type.empty(), batch)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), after.params, expected
    )


def test_ema_follows_its_closed_form():
    task, optimizer = tiny_task(), optax.sgd(0.1)
    step = jax.jit(make_train_step(task, optimizer, plain_inputs, ema_decay=0.5))
    state = new_state(task, optimizer, ema=True)
    average = state.params["age"]["bias"]
    for number in range(8):
        state, _ = step(state, task.metrics_type.empty(), random_batch(4, seed=number))
        decay = min(0.5, (1 + number) / (10 + number))
        average = decay * average + (1 - decay) * state.params["age"]["bias"]
    np.testing.assert_allclose(state.eval_params["age"]["bias"], average, rtol=1e-5)


def test_evaluation_ignores_padding_and_adds_up_over_devices():
    task = tiny_task()
    variables = task.init(jax.random.key(0), (16, 16, 1))
    batch = random_batch(8)
    batch["weight"][5:] = 0.0
    expected = None
    for mode, devices in [("jit", 1), ("jit", 4), ("pmap", 4)]:
        parallel = Parallel(mode, jax.devices()[:devices])
        step = parallel.eval_step(make_eval_step(task, plain_inputs, axis_name=parallel.axis_name))
        metrics, outputs = step(parallel.put_state(variables), parallel.put_batch(batch))
        rows = parallel.fetch(outputs)
        error = np.abs(rows["predicted_age"] - batch["bone_age"])[:5].mean()
        np.testing.assert_allclose(metrics.compute()["mae"], error, rtol=1e-5)
        known = (batch["male"] >= 0)[:5]
        right = ((rows["p_male"] > 0.5) == (batch["male"] == 1))[:5][known]
        np.testing.assert_allclose(metrics.compute()["sex_accuracy"], right.mean(), rtol=1e-6)
        if expected is not None:
            np.testing.assert_allclose(rows["predicted_age"], expected, rtol=1e-4)
        expected = rows["predicted_age"]


def test_flipped_evaluation_does_not_see_a_flip():
    task = tiny_task()
    variables = task.init(jax.random.key(0), (16, 16, 1))
    step = jax.jit(make_eval_step(task, plain_inputs, flips=True))
    batch = random_batch(4)
    mirrored = batch | {"image": batch["image"][:, :, ::-1]}
    _, once = step(variables, batch)
    _, again = step(variables, mirrored)
    np.testing.assert_allclose(once["predicted_age"], again["predicted_age"], rtol=1e-5)


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(InputError, match="multiple of 8"):
        Parallel("jit", jax.devices()[:4]).check_batch("batch_size", 12, accumulate=2)
    with pytest.raises(InputError, match="pmap"):
        Parallel("pjit")

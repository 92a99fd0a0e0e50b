"""Fine-tuning in part: what is frozen, what it costs, and how fast the rest moves."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from boneage_jax.config import base_config, check_config
from boneage_jax.data.info import DataInfo
from boneage_jax.data.inputs import make_inputs
from boneage_jax.errors import InputError
from boneage_jax.models.efficientnet import layer_names, layer_of
from boneage_jax.models.registry import create_model
from boneage_jax.storage.state import merge, select
from boneage_jax.tasks.registry import make_task
from boneage_jax.training.finetune import in_backbone, rate_factors, trainable_part
from boneage_jax.training.optimizer import Groups, make_optimizer, peak_rate
from boneage_jax.training.run import build_run, fresh_state
from tests.support.tiny_task import random_batch

INFO = DataInfo(image_size=32, train_images=64, age_mean=120.0, age_std=40.0)


def small_config(**changes):
    config = base_config()
    config.model.name = "efficientnet_lite0"
    config.batch_size = config.eval_batch_size = 8
    config.steps = 4
    for key, value in changes.items():
        config.update_from_flattened_dict({key.replace("__", "."): value})
    return check_config(config)


@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet_lite0", "efficientnet_b4"])
def test_every_module_of_the_network_is_in_one_layer_of_one_block(name):
    model = create_model(name)
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 1), jnp.float32))
    )
    blocks = layer_names(name)
    layers = [layer for block in blocks.values() for layer in block]
    assert len(set(layers)) == len(layers)
    assert {layer_of(module) for module in shapes["params"]} == set(layers)
    for block, own in blocks.items():
        assert all(layer.startswith(block) for layer in own)


def test_the_last_blocks_and_layers_are_counted_from_the_output():
    blocks = layer_names("efficientnet_lite0")
    assert len(blocks) == 18  # 16 blocks, stem and top
    part = trainable_part(small_config(finetune__last_blocks=2))
    trained = {x for block in blocks.values() for x in block} - part.frozen
    assert trained == {"top", "block7a_expand", "block7a_dwconv", "block7a_project"}
    part = trainable_part(small_config(finetune__last_layers=2))
    assert {x for block in blocks.values() for x in block} - part.frozen == {
        "top",
        "block7a_project",
    }
    assert part(("age", "kernel")) and part(("backbone", "top_bn", "scale"))
    assert not part(("backbone", "block7a_bn", "scale"))  # of block7a_dwconv
    assert trainable_part(small_config()).all


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"finetune__last_blocks": 19}, r"last_blocks=19 must lie in 0\.\.18"),
        ({"finetune__last_layers": -2}, "last_layers=-2 must be in"),
        ({"finetune__last_layers": 1, "finetune__last_blocks": 1}, "exclude each other"),
        ({"finetune__head_first": 1.0}, "head_first"),
        ({"finetune__layer_decay": 0.0}, "layer_decay"),
        (
            {"finetune__head_first": 0.5, "task": "hand_mask", "model__name": "unet"},
            r"config\.finetune is for bone_age",
        ),
    ],
)
def test_wrong_settings_are_named(changes, words):
    with pytest.raises(InputError, match=words):
        build_run(small_config(**changes), INFO)


def flops(**changes):
    return build_run(small_config(**changes), INFO).train_flops


def test_frozen_parts_cost_their_forward_pass_alone():
    counts = [flops(finetune__last_blocks=n) for n in (0, 1, 6, 18)]
    assert counts == sorted(counts) and len(set(counts)) == 4
    assert counts[-1] == flops()
    run = build_run(small_config(finetune__last_blocks=0), INFO)
    assert counts[0] == pytest.approx(run.network.eval_flops, rel=0.01)
    # The whole costs three times the forward pass, less the gradient by the input image.
    assert 2.8 < counts[-1] / run.network.eval_flops < 3.0


def test_a_budget_buys_more_steps_of_a_partly_frozen_network():
    whole = build_run(small_config(steps=0, budget_flops=3e10), INFO)
    part = build_run(small_config(steps=0, budget_flops=3e10, finetune__last_blocks=1), INFO)
    assert part.total_steps > 2 * whole.total_steps
    for run in (whole, part):
        assert (
            run.flops_until(run.total_steps)
            <= 3e10
            < run.flops_until(run.total_steps) + (run.train_flops)
        )


@pytest.fixture(scope="module")
def frozen_step():
    """State before and after two steps in which the last two blocks learn, and the gradient."""
    config = small_config(
        finetune__last_blocks=2,
        ema_decay=0.9,
        augment__flip=0.0,
        model__dropout=0.0,
        model__drop_path_rate=0.2,
        optimizer__name="sgd",
        optimizer__weight_decay=0.0,
        optimizer__clip_norm=0.0,
        optimizer__schedule="constant",
        optimizer__warmup=0.0,
        optimizer__beta1=0.0,
        optimizer__learning_rate=0.1,
    )
    run = build_run(config, INFO, jax.devices()[:1])
    state = fresh_state(config, INFO, run.task, run.optimizer)
    # Statistics that differ from those of the batch, so that using the wrong ones shows.
    # The small variance keeps signals alive through layers that do not normalise by their batch.
    stats = jax.tree.map(lambda x: 0.1 * x + 0.01, state.batch_stats)
    state = dataclasses.replace(state, batch_stats=stats)
    before = jax.device_get(state)
    batch = random_batch(8, side=32)
    placed = run.parallel.put_batch(batch)
    metrics = run.parallel.put_state(run.task.metrics_type.empty())
    after, _ = run.train_step_at(0)(run.parallel.put_state(state), metrics, placed)
    return run, before, jax.device_get(after), batch


def test_frozen_parameters_and_statistics_do_not_move(frozen_step):
    run, before, after, _ = frozen_step
    part = run.trainable
    for name in ("params", "batch_stats"):
        old, new = getattr(before, name), getattr(after, name)
        frozen = select(old, lambda path: not part(path))
        jax.tree.map(np.testing.assert_array_equal, frozen, select(new, lambda p: not part(p)))
        moved = jax.tree.map(
            lambda a, b: np.abs(a - b).max() > 0, select(old, part), select(new, part)
        )
        assert np.mean(jax.tree.leaves(moved)) > 0.9, name


def test_there_is_no_optimizer_memory_for_frozen_parts(frozen_step):
    run, before, _, _ = frozen_step
    trained = sum(x.size for x in jax.tree.leaves(select(before.params, run.trainable)))
    assert trained < 0.4 * sum(x.size for x in jax.tree.leaves(before.params))
    assert sum(x.size for x in jax.tree.leaves(before.ema_params)) == trained
    moments = [x for x in jax.tree.leaves(before.opt_state) if x.ndim]
    assert sum(x.size for x in moments) == trained
    merged = before.eval_params
    assert jax.tree.structure(merged) == jax.tree.structure(before.params)


def test_the_gradient_is_that_of_the_whole_network(frozen_step):
    """By plain SGD; against jax.grad by all parameters of the same function."""
    run, before, after, batch = frozen_step
    config, part = run.config, run.trainable
    task = make_task(config, INFO, None, part.frozen)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(
        jax.random.wrap_key_data(before.rng), batch["draw"]
    )
    augment_keys, model_keys = jax.vmap(jax.random.split, out_axes=1)(keys)

    @jax.jit
    def loss(params):
        inputs = make_inputs(config)(batch, augment_keys)
        variables = {"params": params, "batch_stats": before.batch_stats}
        outputs, _ = task.apply(variables, inputs, train=True, keys=model_keys)
        return task.loss(outputs, inputs)[0].mean()

    grads = select(jax.jit(jax.grad(loss))(before.params), part)
    old, new = select(before.params, part), select(after.params, part)
    found = jax.tree.map(lambda p, q: (p - q) / 0.1, old, new)
    # By the norm of each leaf: single values differ where a ReLU lies at its kink.
    for wanted, got in zip(jax.tree.leaves(grads), jax.tree.leaves(found), strict=True):
        scale = max(float(jnp.linalg.norm(wanted)), 1e-3)
        assert float(jnp.linalg.norm(wanted - got)) < 0.05 * scale


def fake_params():
    return {
        "backbone": {
            "stem_conv": {"kernel": jnp.ones((2, 2))},
            "block7a_bn": {"scale": jnp.ones(2)},
            "top_conv": {"kernel": jnp.ones((2, 2))},
        },
        "age": {"kernel": jnp.ones((2, 1)), "bias": jnp.ones(1)},
    }


def plain(**changes):
    config = base_config().optimizer
    config.update({"schedule": "constant", "warmup": 0.0, "clip_norm": 0.0} | changes)
    return config


def test_layer_decay_slows_each_block_by_its_distance_from_the_heads():
    params = fake_params()
    part = trainable_part(small_config())
    groups = Groups(rate_factors=lambda tree: rate_factors(tree, part, 0.5))
    config = plain(name="sgd", weight_decay=0.0, beta1=0.0, learning_rate=1.0)
    optimizer = make_optimizer(config, 10, groups=groups)
    ones = jax.tree.map(jnp.ones_like, params)
    updates, _ = optimizer.update(ones, optimizer.init(params), params)
    found = jax.tree.map(lambda x: float(-x.ravel()[0]), updates)
    assert found == {
        "backbone": {
            "stem_conv": {"kernel": 0.5**18},
            "block7a_bn": {"scale": 0.5**2},
            "top_conv": {"kernel": 0.5},
        },
        "age": {"kernel": 1.0, "bias": 1.0},
    }


@pytest.mark.parametrize("name", ["adamw", "lion"])
def test_the_backbone_has_a_decay_of_its_own(name):
    params = fake_params()
    config = plain(name=name, weight_decay=0.5, learning_rate=0.1)
    groups = Groups(in_backbone=in_backbone, backbone_decay=0.25)
    optimizer = make_optimizer(config, 10, groups=groups)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    np.testing.assert_allclose(updates["backbone"]["stem_conv"]["kernel"], -0.1 * 0.25)
    np.testing.assert_allclose(updates["backbone"]["block7a_bn"]["scale"], 0)
    np.testing.assert_allclose(updates["age"]["kernel"], -0.1 * 0.5)
    np.testing.assert_allclose(updates["age"]["bias"], 0)


def test_a_rested_backbone_starts_as_if_the_optimizer_were_new():
    params = fake_params()
    config = plain(name="adamw", schedule="cosine", weight_decay=0.1, learning_rate=0.1)

    def optimizer(resting):
        groups = Groups(in_backbone=in_backbone, head_steps=3, resting=resting)
        return make_optimizer(config, 8, groups=groups)

    grads = jax.tree.map(lambda x: 0.3 * jnp.ones_like(x), params)
    state = optimizer(True).init(params)
    assert jax.tree.structure(state) == jax.tree.structure(optimizer(False).init(params))
    for _ in range(3):
        updates, state = optimizer(True).update(grads, state, params)
        assert all(not x.any() for x in jax.tree.leaves(updates["backbone"]))
    updates, state = optimizer(False).update(grads, state, params)
    # Adam's first step is the learning rate itself, here that of step 3 of the schedule.
    rate = 0.1 * 0.5 * (1 + np.cos(np.pi * 3 / 8))
    np.testing.assert_allclose(updates["backbone"]["block7a_bn"]["scale"], -rate, rtol=1e-5)
    np.testing.assert_allclose(
        updates["backbone"]["top_conv"]["kernel"], -rate * (1 + 0.1), rtol=1e-5
    )
    # The heads have been under way all along: a constant gradient keeps Adam's step at the rate.
    np.testing.assert_allclose(updates["age"]["bias"], -rate, rtol=1e-5)


def test_the_rate_follows_the_batch():
    config = plain(learning_rate=1e-3)
    assert peak_rate(config, 512) == 1e-3
    config.reference_batch = 32
    assert peak_rate(config, 128) == pytest.approx(4e-3)
    config.batch_scaling = "sqrt"
    assert peak_rate(config, 128) == pytest.approx(2e-3)
    config.batch_scaling = "cube"
    with pytest.raises(InputError, match="batch_scaling='cube'"):
        peak_rate(config, 128)


def test_merge_undoes_select():
    params = fake_params()
    part = select(params, lambda path: path[-1] == "kernel")
    assert set(part["backbone"]) == {"stem_conv", "top_conv"} and set(part["age"]) == {"kernel"}
    doubled = merge(params, jax.tree.map(lambda x: 2 * x, part))
    assert float(doubled["age"]["kernel"].sum()) == 4 and float(doubled["age"]["bias"].sum()) == 1
    assert jax.tree.structure(merge(params, {})) == jax.tree.structure(params)

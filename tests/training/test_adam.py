"""The optimizer against optax's, which computes the same in another order."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from boneage_jax.config import base_config
from boneage_jax.models.flops import count_flops
from boneage_jax.training import adam
from boneage_jax.training.optimizer import Groups, make_optimizer

SHAPES = {"kernel": (3, 3, 4, 8), "scale": (8,), "bias": (8,), "gain": ()}


def tree(seed, size=1.0):
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(size * rng.normal(size=s), jnp.float32) for name, s in SHAPES.items()}


def run(optimizer, steps=12, **more):
    update = jax.jit(lambda *args: optimizer.update(*args, **more))
    params = tree(0)
    state = optimizer.init(params)
    for step in range(steps):
        # Gradients on both sides of the norm at which they are clipped.
        grads = tree(step + 1, 0.01 if step % 2 else 3.0)
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def test_the_parameters_are_those_of_optax():
    config = base_config().optimizer
    config.update({"schedule": "constant", "warmup": 0.0, "clip_norm": 1.0, "weight_decay": 0.01})
    rate, betas = config.learning_rate, {"b1": config.beta1, "b2": config.beta2}
    kernels = {name: len(shape) > 1 for name, shape in SHAPES.items()}
    theirs = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(rate, **betas, weight_decay=0.01, mask=kernels),
    )
    found, state = run(make_optimizer(config, 100))
    expected, (_, their_state) = run(theirs)
    for name in SHAPES:
        np.testing.assert_allclose(found[name], expected[name], rtol=2e-6, atol=2e-7)
    moments, their_moments = state[1][0], their_state[0]
    assert moments.count == their_moments.count == 12
    for ours, other in ((moments.mu, their_moments.mu), (moments.nu, their_moments.nu)):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-8), ours, other
        )


def test_the_saved_moments_have_the_names_of_optax():
    """Checkpoints of either go on with the other."""
    names = [
        [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
        for state in (
            adam.scale_by_adam(0.9, 0.999).init(tree(0)),
            optax.scale_by_adam().init(tree(0)),
        )
    ]
    assert names[0] == names[1] and len(names[0]) == 1 + 2 * len(SHAPES)


def test_a_rejected_step_leaves_the_moments_of_every_group():
    """Heads first, then the backbone: `good` must reach the state of both."""
    config = base_config().optimizer
    config.update({"schedule": "constant", "warmup": 0.0, "clip_norm": 1.0})
    groups = Groups(
        in_backbone=lambda params: {name: name == "kernel" for name in params}, head_steps=2
    )
    optimizer = make_optimizer(config, 100, groups=groups)
    params, state = run(optimizer)
    spoilt = jax.tree.map(lambda leaf: leaf * jnp.nan, tree(5))
    _, after = jax.jit(optimizer.update)(spoilt, state, params, good=jnp.array(False))
    before = jax.tree.leaves(state)
    for old, new in zip(before, jax.tree.leaves(after), strict=True):
        if old.ndim:  # schedules count on; `boneage_jax.training.nonfinite.accept` holds them
            np.testing.assert_array_equal(old, new)
    assert sum(old.ndim > 0 for old in before) >= 2 * 3


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_the_norm_is_that_of_optax_and_counts_no_flops(size):
    values = tree(3, size)
    np.testing.assert_allclose(adam.global_norm(values), optax.tree.norm(values), rtol=1e-6)
    assert adam.global_norm({}) == 0
    assert count_flops(adam.global_norm, values) == 0


def test_joined_vectors_keep_values_and_dtypes():
    leaves = [jnp.arange(3.0), jnp.ones((2, 2)), jnp.int32(7), jnp.array(9.0)]
    joined = adam.join_small(leaves)
    assert sorted(tuple(x.shape) for x in joined) == [(1,), (2, 2), (4,)]
    (floats,) = (x for x in joined if x.shape == (4,))
    np.testing.assert_array_equal(floats, [0, 1, 2, 9])

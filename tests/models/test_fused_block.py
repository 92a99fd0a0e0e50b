"""The parts of a block for TPUs against JAX's own derivatives of what they compute."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tests.support.tiny_backbone  # noqa: F401
from boneage_jax.models.efficientnet import EfficientNet
from boneage_jax.models.fused_block import (
    gated_product,
    pointwise,
    pointwise_with_moments,
    pooled_act,
)
from tests.support.derivatives import check_derivatives


def plain_moments(x, kernel):
    out = x @ kernel[0, 0]
    return out, out.mean((0, 1, 2)), (out**2).mean((0, 1, 2))


def plain_pool(x, a, b, act):
    return act(x * a + b).mean((1, 2))


def plain_product(x, a, b, gate, kernel, act):
    return (act(x * a + b) * gate[:, None, None]) @ kernel[0, 0]


CASES = {
    "moments": (pointwise_with_moments, plain_moments, [(3, 5, 4, 6), (1, 1, 6, 9)]),
    "pool": (
        functools.partial(pooled_act, act=jax.nn.swish),
        functools.partial(plain_pool, act=jax.nn.swish),
        [(3, 5, 4, 6), (6,), (6,)],
    ),
    "product": (
        lambda *args: gated_product(*args, jax.nn.swish),
        functools.partial(plain_product, act=jax.nn.swish),
        [(3, 5, 4, 6), (6,), (6,), (3, 6), (1, 1, 6, 2)],
    ),
    "product, relu6": (
        lambda *args: gated_product(*args, jax.nn.relu6),
        functools.partial(plain_product, act=jax.nn.relu6),
        [(2, 1, 7, 4), (4,), (4,), (2, 4), (1, 1, 4, 5)],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_results_and_gradients_are_jaxs(case):
    check_derivatives(*CASES[case])


@pytest.mark.parametrize("case", CASES)
def test_bfloat16_stays_close_to_float32(case):
    """Wide arrays and their gradients are bfloat16, sums and their gradients float32."""
    ours, _, shapes = CASES[case]
    rng = np.random.default_rng(1)
    args = [
        jnp.asarray(rng.normal(size=shape), jnp.float32 if len(shape) == 1 else jnp.bfloat16)
        for shape in shapes
    ]
    found, pull = jax.vjp(ours, *args)
    exact, exact_pull = jax.vjp(ours, *(x.astype(jnp.float32) for x in args))
    ones = jax.tree.map(jnp.ones_like, found)
    grads = pull(ones)
    assert [g.dtype for g in grads] == [x.dtype for x in args]
    exact_grads = exact_pull(jax.tree.map(jnp.ones_like, exact))
    for low, high in zip(
        *map(jax.tree.leaves, ((found, grads), (exact, exact_grads))), strict=True
    ):
        low = low.astype(jnp.float32)
        assert jnp.abs(low - high).max() <= 0.03 * jnp.abs(high).max()


def test_the_result_is_not_read_for_the_gradient_of_its_moments():
    """That gradient meets no wide array: nothing of the result's shape is computed for it."""
    x, kernel = jnp.ones((2, 5, 4, 3)), jnp.ones((1, 1, 3, 18))

    def moments(x, kernel):
        return pointwise_with_moments(x, kernel)[1:]

    _, pull = jax.vjp(moments, x, kernel)
    jaxpr = jax.make_jaxpr(pull)((jnp.ones(18), jnp.ones(18)))
    wide = [
        eqn.primitive.name
        for eqn in jaxpr.jaxpr.eqns
        for out in eqn.outvars
        if out.aval.shape == (2, 5, 4, 18)
    ]
    assert set(wide) <= {"broadcast_in_dim"}  # the zeros that stand for no gradient


def test_a_batch_in_parts_is_the_whole_batch():
    """Statistics over a device axis, with its gradients, as under pmap."""
    images = jnp.asarray(np.random.default_rng(0).normal(size=(4, 32, 32, 1)), jnp.float32)
    options = {"depthwise": "fused", "drop_path_rate": 0.0}
    whole = EfficientNet("tiny_b0", **options)
    parts = EfficientNet("tiny_b0", bn_axis_name="parts", **options)
    shapes = jax.eval_shape(whole.init, jax.random.key(0), images)
    rng = np.random.default_rng(2)
    variables = jax.tree.map(
        lambda x: jnp.asarray(0.2 * rng.normal(size=x.shape) + (x.ndim < 2), x.dtype), shapes
    )

    def gradient(model, images):
        def loss(params):
            both = variables | {"params": params}
            out, _ = model.apply(both, images, train=True, mutable=["batch_stats"])
            return jnp.square(out).mean()

        return jax.grad(loss)(variables["params"])

    @jax.jit
    def of_parts(images):
        split = images.reshape(2, 2, *images.shape[1:])
        run = jax.vmap(functools.partial(gradient, parts), axis_name="parts")
        return jax.tree.map(lambda g: g.mean(0), run(split))

    expected = jax.jit(functools.partial(gradient, whole))(images)
    scale = max(np.linalg.norm(g) for g in jax.tree.leaves(expected))
    for mine, theirs in zip(*map(jax.tree.leaves, (of_parts(images), expected)), strict=True):
        assert np.linalg.norm(mine - theirs) <= 0.01 * np.linalg.norm(theirs) + 1e-5 * scale


def test_pointwise_is_a_product_of_matrices():
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 3, 4, 5)), rng.normal(size=(1, 1, 5, 6))
    single = (jnp.asarray(value, jnp.bfloat16) for value in (x, kernel))
    out = pointwise(*single, jnp.float32)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, x @ kernel[0, 0], rtol=0.05, atol=0.1)

"""Parts of a block for GPUs against JAX's own derivatives, and the Triton kernel interpreted."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tests.support.tiny_backbone  # noqa: F401
from boneage_jax.models.efficientnet import EfficientNet
from boneage_jax.models.flops import count_flops
from boneage_jax.models.gpu_block import (
    gated_product,
    moments,
    pointwise,
    pooled_act,
    scale_and_act,
)
from boneage_jax.models.triton_sums import run_sums
from tests.support.derivatives import check_derivatives


def plain_act(x, a, b, act):
    z = x * a + b
    return z if act is None else act(z)


CASES = {
    "pointwise": (pointwise, lambda x, k: x @ k[0, 0], [(3, 5, 4, 6), (1, 1, 6, 9)]),
    "pointwise, in groups": (pointwise, lambda x, k: x @ k[0, 0], [(2, 16, 16, 2), (1, 1, 2, 3)]),
    "moments": (moments, lambda x: (x.mean((0, 1, 2)), (x**2).mean((0, 1, 2))), [(3, 5, 4, 6)]),
    "pool": (
        lambda *args: pooled_act(*args, jax.nn.swish),
        lambda *args: plain_act(*args, jax.nn.swish).mean((1, 2)),
        [(3, 5, 4, 6), (6,), (6,)],
    ),
    "product": (
        lambda *args: gated_product(*args, jax.nn.swish),
        lambda x, a, b, gate, k: (plain_act(x, a, b, jax.nn.swish) * gate[:, None, None]) @ k[0, 0],
        [(3, 5, 4, 6), (6,), (6,), (3, 6), (1, 1, 6, 2)],
    ),
} | {
    f"scale, {act and act.__name__}": (
        lambda *args, act=act: scale_and_act(*args, act),
        lambda *args, act=act: plain_act(*args, act),
        [(2, 3, 7, 4), (4,), (4,)],
    )
    for act in (None, jax.nn.swish, jax.nn.relu6)
}


@pytest.mark.parametrize("case", CASES)
def test_results_and_gradients_are_jaxs(case):
    check_derivatives(*CASES[case])


def products(x, y, a):
    return x * a, y * y + a, x * y


# Images, pixels, channels: with pixels side by side, alone, fewer than a program takes.
@pytest.mark.parametrize("shape", [(3, 100, 24), (2, 95, 5), (1, 9000, 48), (2, 49, 70), (1, 7, 3)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_kernel_sums_what_it_is_asked_to(shape, dtype):
    """What lies beyond the last pixel or channel adds nothing, though the function is not 0 there.

    Values are small whole numbers, so that sums are exact whatever their order.
    """
    rng = np.random.default_rng(0)
    x, y = rng.integers(-4, 5, (2, *shape)).astype(np.float64)
    a = rng.integers(1, 4, shape[-1]).astype(np.float64)
    expected = np.stack([value.sum(1) for value in products(x, y, a)])
    wide = (jnp.asarray(value, dtype) for value in (x, y))
    found = run_sums(products, 2, *wide, jnp.asarray(a, jnp.float32), interpret=True)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", ["tiny_b0", "tiny_lite0"])
def test_a_network_and_its_gradients_are_those_of_lax(name):
    images = jnp.asarray(np.random.default_rng(0).normal(size=(4, 32, 32, 1)), jnp.float32)
    plain, ours = (
        EfficientNet(name, depthwise=kind, drop_path_rate=0.0) for kind in ("lax", "cudnn")
    )
    shapes = jax.eval_shape(plain.init, jax.random.key(0), images)
    rng = np.random.default_rng(2)
    variables = jax.tree.map(
        lambda x: jnp.asarray(0.2 * rng.normal(size=x.shape) + (x.ndim < 2), x.dtype), shapes
    )

    def gradient(model, params):
        def loss(params):
            both = variables | {"params": params}
            out, changed = model.apply(both, images, train=True, mutable=["batch_stats"])
            return jnp.square(out).mean(), (out, changed)

        return jax.grad(loss, has_aux=True)(params)

    params = variables["params"]
    expected = jax.jit(functools.partial(gradient, plain))(params)
    found = jax.jit(functools.partial(gradient, ours))(params)
    scale = max(np.linalg.norm(g) for g in jax.tree.leaves(expected[0]))
    for mine, theirs in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert np.linalg.norm(mine - theirs) <= 0.01 * np.linalg.norm(theirs) + 1e-5 * scale
    np.testing.assert_allclose(
        ours.apply(variables, images), plain.apply(variables, images), rtol=1e-4, atol=1e-5
    )
    steps = [functools.partial(gradient, model) for model in (plain, ours)]
    assert count_flops(steps[1], params) == count_flops(steps[0], params) > 0

"""Images cut into strips against the same images whole."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import tests.support.tiny_backbone  # noqa: F401
from boneage_jax.models.depthwise import depthwise_conv, exact_pads, fused_depthwise
from boneage_jax.models.efficientnet import EfficientNet
from boneage_jax.models.fused_block import pointwise
from boneage_jax.models.strips import borders, cut_windows, join, strips_for
from tests.support.derivatives import check_derivatives

CONVOLUTIONS = [
    pytest.param(kernel, stride, padding, id=f"{kernel}x{kernel}, stride {stride}, {padding}")
    for kernel in (1, 3, 5)
    for stride in (1, 2)
    for padding in ("SAME", "symmetric")
]


def pads_of(kernel, padding):
    return "SAME" if padding == "SAME" else ((kernel // 2, kernel // 2),) * 2


def whole_conv(x, kernel, stride, padding):
    return lax.conv_general_dilated(
        *(x, kernel, (stride, stride), padding),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1] // kernel.shape[2],
    )


@pytest.mark.parametrize(("kernel", "stride", "padding"), CONVOLUTIONS)
def test_strips_are_convolved_as_if_they_were_joined(kernel, stride, padding):
    """Results, and gradients of input and kernel, are those of whole images."""
    padding, strips = pads_of(kernel, padding), 3

    def cut(x, weights):
        x = x.reshape(-1, x.shape[1] // strips, *x.shape[2:])
        out = depthwise_conv(x, weights, stride=stride, padding=padding, strips=strips)
        return join(out, strips)

    whole = functools.partial(whole_conv, stride=stride, padding=padding)
    check_derivatives(cut, whole, [(2, 24, 7, 4), (kernel, kernel, 1, 4)])


@pytest.mark.parametrize("stride", [1, 2])
def test_what_is_convolved_may_be_computed_twice(stride):
    """With normalisation and activation, borders from the narrow input, and nothing wide kept."""
    strips, act = 2, jax.nn.swish

    def cut(x, widen, a, b, weights):
        x = x.reshape(-1, x.shape[1] // strips, *x.shape[2:])
        pads = exact_pads((x.shape[1] * strips, x.shape[2]), 3, stride, "SAME")
        edges = tuple(pointwise(rows, widen) for rows in borders(x, 3, stride, pads[0]))
        out = fused_depthwise(
            *(pointwise(x, widen), a, b, weights),
            act=act,
            stride=stride,
            strips=strips,
            edges=edges,
            source=(x, widen),
        )
        return join(out, strips)

    def whole(x, widen, a, b, weights):
        return whole_conv(act((x @ widen[0, 0]) * a + b), weights, stride, "SAME")

    check_derivatives(cut, whole, [(2, 16, 5, 3), (1, 1, 3, 6), (6,), (6,), (3, 3, 1, 6)])
    x, widen = jnp.ones((2, 16, 5, 3)), jnp.ones((1, 1, 3, 6))
    kept = jax.make_jaxpr(lambda *args: jax.vjp(cut, *args)[1])(
        *(x, widen, jnp.ones(6), jnp.ones(6), jnp.ones((3, 3, 1, 6)))
    )
    assert (4, 8, 5, 6) not in [out.shape for out in kept.out_avals]
    assert (4, 8, 5, 3) in [out.shape for out in kept.out_avals]


@pytest.mark.parametrize("padding", ["SAME", "symmetric"])
def test_windows_hold_what_each_strip_needs(padding):
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=(2, 40, 9, 2)), rng.normal(size=(3, 3, 2, 5))
    with jax.enable_x64(True):
        pads = exact_pads(x.shape[1:3], 3, 2, pads_of(3, padding))
        windows = cut_windows(jnp.asarray(x), 5, 3, 2, pads[0])
        found = join(whole_conv(windows, weights, 2, ((0, 0), pads[1])), 5)
        expected = whole_conv(jnp.asarray(x), weights, 2, pads)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


NETWORKS = {
    "b0": ("efficientnet_b0", {}),
    "b0, remat": ("efficientnet_b0", {"remat": True, "padding": "symmetric"}),
    "lite0": ("efficientnet_lite0", {"frozen": frozenset({"stem", "block1a_dwconv"})}),
}


@pytest.mark.parametrize("case", NETWORKS)
def test_a_network_on_strips_is_the_network(case, monkeypatch):
    """A train step's loss, gradients and statistics, with stochastic depth."""
    # Two blocks in the stages that are cut, the second of which is residual.
    repeats = [2, 2, 1, 1, 1, 1, 1]
    monkeypatch.setattr("boneage_jax.models.efficientnet.stage_repeats", lambda spec: repeats)
    name, options = NETWORKS[case]
    images = jnp.asarray(np.random.default_rng(0).normal(size=(3, 80, 47, 1)), jnp.float32)
    assert strips_for(64, 40) == 2
    keys = jax.random.split(jax.random.key(1), 3)
    whole = EfficientNet(name, depthwise="fused", drop_path_rate=0.9, **options)
    shapes = jax.eval_shape(whole.init, jax.random.key(0), images)
    rng = np.random.default_rng(2)
    variables = jax.tree.map(
        lambda x: jnp.asarray(0.2 * rng.normal(size=x.shape) + (x.ndim < 2), x.dtype), shapes
    )

    @functools.partial(jax.jit, static_argnums=0)
    def step(model, keys):
        def loss(params):
            both = variables | {"params": params}
            out, new = model.apply(
                both, images, train=True, image_keys=keys, mutable=["batch_stats"]
            )
            return jnp.square(out).mean(), new

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    cut = whole.clone(images_per_device=64)
    programs = [str(jax.make_jaxpr(step, static_argnums=0)(model, keys)) for model in (whole, cut)]
    assert "f32[6,20,24,32]" not in programs[0] and "f32[6,20,24,32]" in programs[1]
    (loss, stats), grads = step(whole, keys)
    (cut_loss, cut_stats), cut_grads = step(cut, keys)
    assert abs(step(cut, keys[::-1])[0][0] - loss) > 1e-3 * loss  # images are dropped by their keys
    np.testing.assert_allclose(cut_loss, loss, rtol=1e-5)
    scale = max(np.linalg.norm(g) for g in jax.tree.leaves(grads))
    for mine, theirs in zip(
        *map(jax.tree.leaves, ((cut_grads, cut_stats), (grads, stats))), strict=True
    ):
        # Rounding moves some values across the kinks of relu6: 1.4e-3 on a processor with AVX2.
        assert np.linalg.norm(mine - theirs) <= 3e-3 * np.linalg.norm(theirs) + 1e-5 * scale


def test_edges_of_another_height_are_refused():
    x, one = jnp.ones((4, 8, 5, 2)), jnp.ones(2)
    run = functools.partial(fused_depthwise, x, one, one, jnp.ones((3, 3, 1, 2)), act=jax.nn.relu)
    with pytest.raises(ValueError, match="must have 1, 1 rows"):
        run(strips=2, edges=(x[:, -2:], x[:, :1]))
    with pytest.raises(ValueError, match="whole images"):
        run(strips=2, keep=True)
    np.testing.assert_allclose(run(strips=2), run(strips=2, edges=(x[:, -1:], x[:, :1])))


def test_strips_fill_the_lanes_of_a_tpu():
    assert strips_for(64, 190) == 5  # 320 of 384 lanes; two strips would have 95 rows
    assert strips_for(64, 128) == 2
    assert strips_for(32, 128) == 4
    assert strips_for(128, 190) == 1
    assert strips_for(64, 95) == 1  # no strips of an even number of rows
    assert strips_for(64, 24) == 1  # too few rows
    assert strips_for(100, 128) == 1  # what is padding weighs less than the borders
    assert strips_for(0, 190) == 1  # built for no device

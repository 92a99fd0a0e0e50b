"""Every model by name at 32 px: the gradient of the small ones in numbers, the shapes of others.

Two identities judge the numbers. Outputs are linear in the parameters of the head, so for the loss
`sum(outputs**2) / 2` these have the inner product `sum(outputs**2)` with their gradient. What
BatchNorm follows can be scaled without a change of the outputs, so such a kernel is orthogonal to
its gradient.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from boneage_jax.models.registry import NAMES, UNET_NAMES, create_model

IN_NUMBERS = ("efficientnet_b0", "efficientnet_lite0", *UNET_NAMES)
BATCH, SIDE = 4, 32


def make_loss(name):
    """Returns the function of (loss, (outputs, new)), and shapes of the variables."""
    of_kind = (
        {} if name in UNET_NAMES else {"num_classes": 2, "drop_path_rate": 0.0, "dropout": 0.0}
    )
    model = create_model(name, **of_kind)
    images = jnp.zeros((BATCH, SIDE, SIDE, 1))
    variables = jax.eval_shape(model.init, jax.random.key(0), images)

    def loss(params, rest, images):
        inputs = {"params": params, **rest}
        outputs, new = model.apply(inputs, images, train=True, mutable=["batch_stats"])
        return jnp.square(outputs).sum() / 2, (outputs, new)

    return loss, variables


@pytest.mark.parametrize("name", IN_NUMBERS)
def test_gradients_obey_the_identities(name):
    loss_of, variables = make_loss(name)
    rng = np.random.default_rng(0)  # compiling 200 random initialisers would take 20 s

    def draw(path, leaf):
        kind, draws = path[-1].key, rng.normal(size=leaf.shape)
        if kind == "kernel":  # as He et al. do, so that BatchNorm's epsilon does not count
            return jnp.asarray(np.sqrt(2 / np.prod(leaf.shape[:-1])) * draws, leaf.dtype)
        return jnp.asarray(float(kind in ("scale", "var")) + 0.1 * draws, leaf.dtype)

    variables = jax.tree_util.tree_map_with_path(draw, variables)
    params = variables.pop("params")
    images = jnp.asarray(rng.normal(size=(BATCH, SIDE, SIDE, 1)), jnp.float32)
    step = jax.jit(jax.value_and_grad(loss_of, has_aux=True))
    (loss, (outputs, new)), gradient = step(params, variables, images)
    assert float(loss) > 0
    assert jax.tree.map(jnp.shape, new.get("batch_stats", {})) == jax.tree.map(
        jnp.shape, variables.get("batch_stats", {})
    )
    head = "head" if name in UNET_NAMES else "predictions"
    product = sum((params[head][key] * gradient[head][key]).sum() for key in ("kernel", "bias"))
    assert float(product) == pytest.approx(float(jnp.square(outputs).sum()), rel=1e-3)
    normalised = 0
    for module, leaves in gradient.items():
        for leaf in jax.tree.leaves(leaves):
            assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, module
        if module.endswith("conv") and "bias" not in leaves:  # since BatchNorm follows
            g, w = leaves["kernel"], params[module]["kernel"]
            assert abs((g * w).sum()) < 0.005 * np.sqrt(jnp.square(g).sum() * jnp.square(w).sum())
            normalised += 1
    assert normalised >= 9 or name == "unet_10"  # which has no BatchNorm


@pytest.mark.parametrize("name", [name for name in NAMES if name not in IN_NUMBERS])
def test_loss_and_statistics_have_their_shapes(name):
    """Without the gradient, whose shapes are those of the parameters: tracing it takes thrice."""
    loss, variables = make_loss(name)
    params = variables.pop("params")
    images = jax.ShapeDtypeStruct((BATCH, SIDE, SIDE, 1), jnp.float32)
    value, (outputs, new) = jax.eval_shape(loss, params, variables, images)
    assert value.shape == () and outputs.shape == (BATCH, 2)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(
        lambda x: (x.shape, x.dtype), variables
    )

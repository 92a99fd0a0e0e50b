"""Activations recomputed in the backward pass: the same gradients, more FLOPs, fewer kept bytes."""

import jax
import jax.numpy as jnp
import numpy as np

from boneage_jax.models.efficientnet import EfficientNet
from boneage_jax.models.flops import count_flops
from tests.support import tiny_backbone  # noqa: F401  (adds the variant)


def test_remat_changes_cost_and_nothing_else():
    images = jax.random.normal(jax.random.key(0), (4, 64, 64, 1))
    # Drop paths draw from the keys of the images.
    keys = jax.random.split(jax.random.key(2), 4)
    like = jax.eval_shape(EfficientNet("tiny_lite0").init, jax.random.key(0), images)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: rng.uniform(0.01, 0.1, x.shape).astype(x.dtype), like)
    gradients, flops, kept = [], [], []
    for remat in (False, True):
        model = EfficientNet("tiny_lite0", remat=remat)

        def loss(params, model=model):
            out, updated = model.apply(
                {**variables, "params": params},
                images,
                train=True,
                mutable=["batch_stats"],
                image_keys=keys,
            )
            return jnp.square(out).mean(), updated

        step = jax.jit(jax.grad(loss, has_aux=True))
        gradients.append(step(variables["params"]))
        flops.append(count_flops(step, variables["params"]))
        backward = jax.eval_shape(
            lambda p, loss=loss: jax.vjp(loss, p, has_aux=True)[1], variables["params"]
        )  # a pytree of what the forward pass keeps for it
        kept.append(sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(backward)))
    # Compiled otherwise, sums may be ordered otherwise: float32 rounding through all layers.
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients[0]))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-5 * scale), *gradients
    )
    # One more forward pass, beside a forward and two backward ones.
    assert 1.2 < flops[1] / flops[0] < 1.4
    assert kept[1] < kept[0] / 2, kept

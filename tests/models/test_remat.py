"""Activations computed anew: the same network and gradients, more FLOPs, less memory."""

import jax
import jax.numpy as jnp
import numpy as np

from boneage_jax.flops import count_flops
from boneage_jax.models.registry import create_model


def test_remat_changes_cost_and_nothing_else():
    images = jax.random.normal(jax.random.key(0), (4, 64, 64, 1))
    found = []
    for remat in (False, True):
        model = create_model("efficientnet_lite0", remat=remat)
        variables = jax.jit(model.init)(jax.random.key(1), images)
        # Drop paths draw from the keys of the images.
        keys = jax.random.split(jax.random.key(2), 4)

        def loss(params, model=model, variables=variables, keys=keys):
            options = {} if keys is None else {"image_keys": keys}
            out, updated = model.apply(
                {**variables, "params": params},
                images,
                train=True,
                mutable=["batch_stats"],
                **options,
            )
            return jnp.square(out).mean(), updated

        step = jax.jit(jax.grad(loss, has_aux=True))
        compiled = step.lower(variables["params"]).compile()
        memory = compiled.memory_analysis().temp_size_in_bytes
        found.append(
            (compiled(variables["params"]), count_flops(step, variables["params"]), memory)
        )
    (plain, flops, memory), (again, more, less) = found
    # Compiled otherwise, sums may be ordered otherwise: float32 rounding through all layers.
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5)  # noqa: E731
    jax.tree.map(close, plain, again)
    assert 1.2 < more / flops < 1.4  # one more forward pass, beside a forward and two backward ones
    assert less < memory

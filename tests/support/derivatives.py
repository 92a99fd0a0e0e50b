"""Own derivative rules against JAX's derivatives of the same function in plain words."""

import jax
import jax.numpy as jnp
import numpy as np


def check_derivatives(ours, plain, shapes):
    """Compares results and gradients in float64, each output with a cotangent of its own.

    Args:
      ours, plain: functions of arrays.
      shapes: of their arguments.
    """
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        args = [jnp.asarray(rng.normal(size=shape)) for shape in shapes]
        found, pull = jax.vjp(ours, *args)
        expected, plain_pull = jax.vjp(plain, *args)
        grads = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), expected)
        both = (found, pull(grads)), (expected, plain_pull(grads))
        for mine, theirs in zip(*map(jax.tree.leaves, both), strict=True):
            assert mine.shape == theirs.shape and mine.dtype == theirs.dtype
            np.testing.assert_allclose(mine, theirs, rtol=1e-10, atol=1e-10)

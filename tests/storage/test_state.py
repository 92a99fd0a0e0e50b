import jax.numpy as jnp

from boneage_jax.storage.state import add_flops, flops_of


def test_flops_are_exact_where_float32_is_not():
    step, steps = 387_123_456_789, 3000
    spent = jnp.zeros(2, jnp.uint32)
    for _ in range(steps):
        spent = add_flops(spent, step)
    assert flops_of(spent) == step * steps


def test_flops_carry_over_a_giga():
    spent = add_flops(jnp.array([0, 999_999_999], jnp.uint32), 1)
    assert spent.tolist() == [1, 0]

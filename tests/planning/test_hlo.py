"""Collectives of compiled programs, against programs whose traffic is known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from boneage_jax.planning.hlo import Collective, collectives, shape_bytes
from boneage_jax.runtime.parallel import Parallel

WRITTEN = """HloModule jit_step, is_scheduled=true, num_partitions=4

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%body (carry: (s32[], f32[10])) -> (s32[], f32[10]) {
  %carry = (s32[], f32[10]{0}) parameter(0)
  %value = f32[10]{0} get-tuple-element(%carry), index=1
  %reduced = f32[10]{0:T(128)S(1)} all-reduce(%value), channel_id=3, to_apply=%add
  %n = s32[] get-tuple-element(%carry), index=0
  ROOT %next = (s32[], f32[10]{0}) tuple(%n, %reduced)
}

%more (carry: (s32[], f32[10])) -> pred[] {
  %carry.1 = (s32[], f32[10]{0}) parameter(0)
  ROOT %yes = pred[] constant(true)
}

ENTRY %main (p: bf16[2,3], q: f32[8]) -> f32[8] {
  %p = bf16[2,3]{1,0} parameter(0)
  %q = f32[8]{0} parameter(1)
  %both = (bf16[2,3]{1,0:T(8,128)(2,1)}, /*index=1*/f32[8]{0}) all-reduce(%p, %q), to_apply=%add
  %gather-start = (f32[8]{0}, f32[32]{0}) all-gather-start(%q), channel_id=5, dimensions={0}
  %gather = f32[32]{0} all-gather-done(%gather-start)
  %scattered = f32[8]{0} reduce-scatter(%gather), dimensions={0}, to_apply=%add
  %moved = (f32[8]{0}, f32[8]{0}, u32[], u32[]) collective-permute-start(%scattered)
  %there = f32[8]{0} collective-permute-done(%moved)
  %start = (s32[], f32[10]{0}) tuple(%zero, %ten)
  %loop = (s32[], f32[10]{0}) while(%start), condition=%more, body=%body, \
backend_config={"known_trip_count":{"n":"5"}}
  ROOT %out = f32[8]{0} add(%there, %q), metadata={op_name="after all-reduce(x)"}
}
"""


def test_collectives_of_a_program_written_by_hand():
    found = {c.kind: (c.count, c.payload) for c in collectives(WRITTEN)}
    assert found == {
        "all-reduce": (1 + 5, 12 + 32 + 5 * 40),
        "all-gather": (1, 4 * 32),
        "reduce-scatter": (1, 4 * 32),
        "collective-permute": (1, 4 * 8),
    }


def test_a_compiled_program_reduces_its_gradients_once():
    """Four devices, a two-layer network: the all-reduced bytes are those of its parameters."""
    parallel = Parallel("jit", jax.devices()[:4])
    params = {"a": jnp.zeros((6, 5)), "b": jnp.zeros((5,)), "c": jnp.zeros((5, 3))}

    def step(params, metrics, batch):
        def loss(params):
            hidden = jnp.tanh(batch["x"] @ params["a"] + params["b"])
            return jnp.square(hidden @ params["c"]).sum()

        grads = jax.grad(loss)(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), metrics

    batch = {"x": jax.ShapeDtypeStruct((8, 6), np.float32)}
    text = parallel.train_step(step).lower(params, (), batch).compile().as_text()
    found = collectives(text)
    assert [c.kind for c in found] == ["all-reduce"]
    assert found[0].payload == 4 * (30 + 5 + 15)


def test_a_loop_counts_as_often_as_it_runs():
    parallel = Parallel("jit", jax.devices()[:4])

    def step(x, metrics, batch):
        def body(x, part):
            return x + jnp.sin(part * x).sum(0), None

        return jax.lax.scan(body, x, batch["x"].swapaxes(0, 1))[0], metrics

    batch = {"x": jax.ShapeDtypeStruct((8, 7, 3), np.float32)}
    start = jax.ShapeDtypeStruct((3,), np.float32)
    found = collectives(parallel.train_step(step).lower(start, (), batch).compile().as_text())
    assert [(c.kind, c.count, c.payload) for c in found] == [("all-reduce", 7, 7 * 12)]


def test_one_device_has_nobody_to_talk_to():
    lowered = jax.jit(lambda x: x @ x.T).lower(jnp.zeros((4, 4)))
    assert collectives(lowered.compile().as_text()) == []


def test_text_that_is_no_hlo_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        collectives("module @jit_step { }")


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("f32[]", 4),
        ("bf16[3,5]{1,0:T(8,128)(2,1)S(1)}", 30),
        ("(f32[2,3]{1,0}, bf16[4])", 32),
        ("pred[7]", 7),
        ("(s8[3], u64[2], f8e4m3fn[5])", 24),
        ("f32[0,4]", 0),
    ],
)
def test_bytes_of_shapes(shape, size):
    assert shape_bytes(shape) == size


def test_bytes_on_a_ring():
    """A ring of four passes three quarters of the tensor twice; of two, half of it twice."""
    assert Collective("all-reduce", 1, 400).wire_bytes(4) == 2 * 3 * 100
    assert Collective("all-reduce", 1, 400).wire_bytes(2) == 400
    assert Collective("all-reduce", 1, 400).wire_bytes(1) == 0
    assert Collective("all-gather", 1, 400).wire_bytes(4) == 300
    assert Collective("collective-permute", 1, 400).wire_bytes(4) == 400

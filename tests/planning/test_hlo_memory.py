"""Bytes to and from main memory: shapes and programs whose traffic is known by hand."""

import jax
import jax.numpy as jnp
import pytest

from boneage_jax.planning.hlo_memory import array_bytes, main_memory_bytes

WRITTEN = """HloModule jit_step, is_scheduled=true

%fused (x: f32[1024]) -> f32[1024] {
  %x = f32[1024]{0:T(1024)} parameter(0)
  ROOT %y = f32[1024]{0:T(1024)} multiply(%x, %x)
}

%body (carry: (s32[], f32[1024])) -> (s32[], f32[1024]) {
  %carry = (s32[], f32[1024]{0:T(1024)}) parameter(0)
  %n = s32[] get-tuple-element(%carry), index=0
  %value = f32[1024]{0:T(1024)} get-tuple-element(%carry), index=1
  %square = f32[1024]{0:T(1024)} fusion(%value), kind=kLoop, calls=%fused
  ROOT %next = (s32[], f32[1024]{0:T(1024)}) tuple(%n, %square)
}

%more (carry: (s32[], f32[1024])) -> pred[] {
  %carry.1 = (s32[], f32[1024]{0:T(1024)}) parameter(0)
  ROOT %yes = pred[] constant(true)
}

ENTRY %main (p: f32[1024], q: bf16[4,100,24]) -> f32[1024] {
  %p = f32[1024]{0:T(1024)} parameter(0)
  %q = bf16[4,100,24]{1,2,0:T(8,128)(2,1)} parameter(1)
  %copy-start = (f32[1024]{0:T(1024)S(1)}, f32[1024]{0:T(1024)}, u32[]) copy-start(%p)
  %copy-done = f32[1024]{0:T(1024)S(1)} copy-done(%copy-start)
  %near = f32[1024]{0:T(1024)S(1)} fusion(%copy-done), kind=kLoop, calls=%fused
  %part = ((bf16[4,100,24]{1,2,0:T(8,128)(2,1)}), bf16[1,100,24]{1,2,0:T(8,128)(2,1)S(1)}, s32[]) \
slice-start(%q), slice={[0:1], [0:100], [0:24]}
  %part-done = bf16[1,100,24]{1,2,0:T(8,128)(2,1)S(1)} slice-done(%part)
  %far = f32[1024]{0:T(1024)} fusion(%near, %q), kind=kLoop, calls=%fused
  %start = (s32[], f32[1024]{0:T(1024)}) tuple(%zero, %far)
  %loop = (s32[], f32[1024]{0:T(1024)}) while(%start), condition=%more, body=%body, \
backend_config={"known_trip_count":{"n":"5"}}
  ROOT %out = f32[1024]{0:T(1024)} get-tuple-element(%loop), index=1
}
"""


def test_a_program_written_by_hand():
    brought = 4096  # p is read, its copy lies on the chip
    sliced = 24 * 128 * 2  # one of the four parts, its rows of 100 padded to 128
    far = 4 * 24 * 128 * 2 + 4096  # all of q is read, the result written; `near` is on the chip
    looped = 5 * (4096 + 4096)
    assert main_memory_bytes(WRITTEN) == brought + sliced + far + looped


@pytest.mark.parametrize(
    ("dtype", "dims", "layout", "size"),
    [
        ("f32", "", "", 4),
        ("f32", "3,5", "1,0", 60),
        ("bf16", "64,95,95,192", "3,0,2,1:T(8,128)(2,1)", 64 * 95 * 95 * 256 * 2),
        ("bf16", "64,190,190,48", "0,3,2,1:T(8,128)(2,1)", 128 * 190 * 190 * 48 * 2),
        ("f32", "192", "0:T(256)S(1)", 1024),
        ("u8", "7,3", "1,0:T(8,128)(4,1)", 8 * 128),
    ],
)
def test_arrays_are_padded_to_their_tiles(dtype, dims, layout, size):
    assert array_bytes(dtype, dims, layout) == size


def test_a_compiled_program_reads_its_operands_and_writes_its_result():
    lowered = jax.jit(lambda x, y: jnp.tanh(x) * y + 1).lower(jnp.ones(1000), jnp.ones(1000))
    assert main_memory_bytes(lowered.compile().as_text()) == 3 * 4000


def test_text_that_is_no_hlo_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        main_memory_bytes("module @jit_step { }")

"""Checksums of a state see every bit of it."""

import json
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from boneage_jax.errors import InputError
from boneage_jax.inference.load_trained import load_trained
from boneage_jax.storage.checksums import checksums, first_damaged


def _tree(dtype=jnp.float32) -> dict:
    return {"a": {"kernel": jnp.arange(12, dtype=dtype).reshape(3, 4)}, "step": jnp.int32(7)}


def test_checksums_are_those_of_the_bytes():
    found = checksums(_tree())
    assert found == {
        "['a']['kernel']": zlib.crc32(np.arange(12, dtype="<f4").tobytes()),
        "['step']": zlib.crc32(b"\7\0\0\0"),
    }


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_any_flipped_bit_is_seen(dtype):
    tree = _tree(dtype)
    saved = checksums(tree)
    kernel = np.asarray(tree["a"]["kernel"])
    for byte in range(kernel.nbytes):
        for bit in range(8):
            raw = bytearray(kernel.tobytes())
            raw[byte] ^= 1 << bit
            tree["a"]["kernel"] = np.frombuffer(bytes(raw), kernel.dtype).reshape(kernel.shape)
            assert first_damaged(tree, saved) == "['a']['kernel']"


def test_other_arrays_are_named():
    saved = checksums(_tree())
    assert first_damaged(_tree(), saved) == ""
    assert first_damaged(_tree() | {"more": jnp.zeros(1)}, saved) == "['more']"
    assert first_damaged({"step": jnp.int32(7)}, saved) == "['a']['kernel']"


def test_replicated_arrays_are_read_once():
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("batch",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    assert checksums(jax.device_put(_tree(), everywhere)) == checksums(_tree())


def test_a_checkpoint_that_is_not_what_was_saved_is_refused(tiny_train):
    _, workdir = tiny_train("run")
    load_trained(workdir)
    step = max(workdir.glob("checkpoints/[0-9]*"), key=lambda path: int(path.name))
    note = step / "_CHECKPOINT_METADATA"
    content = json.loads(note.read_text())
    saved = content["custom_metadata"]["checksums"]
    name = next(key for key in saved if key.startswith(".ema") and "kernel" in key)
    saved[name] ^= 1
    note.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"is damaged: state\.\S+kernel\S* is not what was saved"):
        load_trained(workdir)

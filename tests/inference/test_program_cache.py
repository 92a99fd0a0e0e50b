"""Traced programs that are kept between starts: the same answers, and never those of another."""

import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tests.support.tiny_backbone  # noqa: F401  (registers a network)
from boneage_jax.config import check_config
from boneage_jax.data.info import DataInfo
from boneage_jax.inference.network import build_network
from boneage_jax.storage import program_cache
from boneage_jax.storage.program_cache import keep_program, load_program, program_key
from configs import cls, seg

SIDE = 32
MALE = {"male": np.array([1, 0, -1])}


@pytest.fixture
def folder(tmp_path):
    """An empty folder for JAX's cache, for this test alone."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    yield tmp_path / "traced"
    jax.config.update("jax_compilation_cache_dir", before)


def unet(**changed):
    config = seg.get_config()
    config.model.name = "unet_10"
    config.eval_batch_size = 2
    config.update(changed)
    info = DataInfo(image_size=SIDE, train_images=8, age_mean=0.0, age_std=1.0)
    return build_network(check_config(config), info, jax.local_devices()[:1])


def random_images(count):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (SIDE, SIDE), np.uint8) for _ in range(count)]


def filled(shapes):
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: jnp.asarray(rng.uniform(0.5, 1, x.shape), x.dtype), shapes)


def test_a_later_start_traces_nothing_and_reads_the_same(folder, monkeypatch):
    first, images = unet(), random_images(2)
    variables = filled(first.variable_shapes())
    wanted = first.read([variables], images, keys=("p_hand",))[0]["p_hand"]
    assert len(list(folder.iterdir())) == 1

    second = unet()
    never = pytest.fail
    monkeypatch.setattr(type(second.task), "init", lambda *_: never("initialised to get shapes"))
    monkeypatch.setattr(type(second.task), "apply", lambda *_, **__: never("traced"))
    assert second.variable_shapes() == first.variable_shapes()
    found = second.read([variables], images, keys=("p_hand",))[0]["p_hand"]
    np.testing.assert_array_equal(found, wanted)
    assert second.parallel.compilations == {"eval": 1}


def test_the_kept_program_is_the_eval_step(folder):
    network = unet()
    variables, images = filled(network.variable_shapes()), random_images(2)
    found = network.read([variables], images, keys=("p_hand",))[0]["p_hand"]
    jax.config.update("jax_compilation_cache_dir", None)
    wanted = unet().read([variables], images, keys=("p_hand",))[0]["p_hand"]
    np.testing.assert_array_equal(found, wanted)


def test_every_setting_that_changes_the_trace_has_its_own_program(folder, monkeypatch):
    base = {"config": {"test_flips": True}}
    keys = [program_key(base), program_key({"config": {"test_flips": False}})]
    with jax.enable_x64(True):
        keys.append(program_key(base))
    monkeypatch.setattr(program_cache, "_sources", lambda: "edited")
    keys.append(program_key(base))
    monkeypatch.setattr(program_cache, "versions", lambda: {"jax": "0.0"})
    keys.append(program_key(base))
    assert len(set(keys)) == len(keys)
    assert unet()._program_key != unet(eval_batch_size=4)._program_key


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "of another format", "a folder"])
def test_a_damaged_program_is_as_good_as_none(folder, damage):
    key, shape = "a" * 64, jax.ShapeDtypeStruct((3,), jnp.float32)
    assert load_program(key) is None
    keep_program(key, lambda x: x + 1, shape)
    path = folder / key
    good = path.read_bytes()
    program = load_program(key)
    np.testing.assert_array_equal(program.call(jnp.zeros(3)), np.ones(3))
    if damage == "a folder":
        path.unlink()
        path.mkdir()
    else:
        other = json.dumps({"a": 1}).encode()
        path.write_bytes(
            {
                "cut": good[:-9],
                "flipped": good[:99] + bytes([good[99] ^ 255]) + good[100:],
                "empty": b"",
                "of another format": hashlib.sha256(other).digest() + other,
            }[damage]
        )
    assert load_program(key) is None
    again = keep_program(key, lambda x: x + 1, shape)
    np.testing.assert_array_equal(again.call(jnp.zeros(3)), np.ones(3))


def test_code_of_the_user_is_traced_anew(folder):
    config = cls.get_config()
    config.model.name = "tiny"
    config.data.height = config.data.width = 0
    config.eval_batch_size = 4
    info = DataInfo(image_size=SIDE, train_images=8, age_mean=120.0, age_std=40.0)
    network = build_network(check_config(config), info, jax.local_devices()[:1])
    variables = network.task.init(jax.random.key(0), (SIDE, SIDE, 1))
    assert len(network.read([variables], random_images(3), MALE)[0]["predicted_age"]) == 3
    assert not folder.exists()


def test_what_cannot_be_exported_is_not_kept(folder):
    shape = jax.ShapeDtypeStruct((3,), jnp.float32)

    def calls_back(x):
        return jax.pure_callback(np.negative, shape, x)

    assert keep_program("c" * 64, calls_back, shape) is None
    assert not folder.exists() or not [*folder.iterdir()]


@pytest.mark.parametrize("place", [None, "gs://bucket/cache"])
def test_without_a_local_cache_nothing_is_kept(place):
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", place)
    try:
        assert keep_program("b" * 64, lambda x: x, jax.ShapeDtypeStruct((1,), jnp.float32)) is None
        assert load_program("b" * 64) is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)

"""Blocks that are computed again in the backward pass: same gradients, more FLOPs, less memory."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from boneage_jax.models import efficientnet, native
from boneage_jax.models.efficientnet import EfficientNet, layer_names, layer_of
from boneage_jax.models.flops import count_flops
from boneage_jax.models.recompute import recomputed
from tests.support import tiny_backbone  # noqa: F401  (adds the variant)

IMAGES = jax.random.normal(jax.random.key(0), (4, 64, 64, 1))
KEYS = jax.random.split(jax.random.key(2), 4)
FIRST_BLOCKS = ("stem", "block1a", "block2a")


@pytest.fixture
def compiled(native_library, monkeypatch) -> None:
    """Code that waits for the gradient; these processes have several devices."""
    monkeypatch.setattr(native, "is_loaded", lambda: True)


@pytest.fixture(params=["of Flax", "compiled code"])
def how(request, monkeypatch) -> str:
    """With `jax.checkpoint`, as on GPUs and TPUs, or with compiled code."""
    if request.param == "of Flax":
        monkeypatch.setattr(native, "is_loaded", lambda: False)
    else:
        request.getfixturevalue("compiled")
    return str(request.param)


@functools.cache
def variables():
    like = jax.eval_shape(EfficientNet("tiny_lite0").init, jax.random.key(0), IMAGES)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.uniform(0.01, 0.1, x.shape).astype(x.dtype), like)


def gradient(remat: bool, frozen: frozenset[str] = frozenset()):
    """The function of the loss's gradient by what is not frozen, and its argument."""
    model = EfficientNet("tiny_lite0", remat=remat, frozen=frozen, drop_path_rate=0.4)
    params = variables()["params"]
    held = {key: value for key, value in params.items() if layer_of(key) in frozen}
    trained = {key: value for key, value in params.items() if key not in held}

    def loss(trained):
        given = {"params": held | trained, "batch_stats": variables()["batch_stats"]}
        out, updated = model.apply(
            given, IMAGES, train=True, mutable=["batch_stats"], image_keys=KEYS
        )
        return jnp.square(out).mean(), updated

    return loss, trained


def test_recomputing_changes_cost_and_nothing_else(how):
    results, flops = [], []
    for remat in (False, True):
        loss, trained = gradient(remat)
        step = jax.jit(jax.grad(loss, has_aux=True))
        results.append(step(trained))
        flops.append(count_flops(step, trained))
    # Compiled otherwise, sums may be ordered otherwise: float32 rounding through all layers.
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(results[0]))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-5 * scale), *results
    )
    # One more forward pass, beside a forward and two backward ones.
    assert 1.2 < flops[1] / flops[0] < 1.4


def test_what_is_inside_the_blocks_is_not_kept(how):
    kept = []
    for remat in (False, True):
        loss, trained = gradient(remat)
        backward = jax.eval_shape(
            lambda p, loss=loss: jax.vjp(loss, p, has_aux=True)[1], trained
        )  # a pytree of what the forward pass keeps for it
        arrays = [leaf for leaf in jax.tree.leaves(backward) if leaf.shape[:1] == (len(IMAGES),)]
        kept.append(sum(leaf.size * leaf.dtype.itemsize for leaf in arrays))
    assert kept[1] < kept[0] / 2, kept


class Chain(nn.Module):
    """Eight wide parts between narrow arrays."""

    wrap: Callable[..., Any]

    @nn.compact
    def __call__(self, x):
        for number in range(8):
            x = self.wrap(functools.partial(Chain._part, number=number))(self, x)
        return x

    def _part(self, x, number):
        wide = jnp.sin(nn.Dense(256, name=f"wide{number}")(x))
        return x + nn.Dense(8, name=f"narrow{number}")(wide)


@pytest.mark.usefixtures("compiled")
def test_xla_plans_less_memory_on_a_cpu():
    """Which it does not for `nn.remat`, whose barriers its CPU backend drops."""
    x = jax.random.normal(jax.random.key(0), (2000, 8))
    params = Chain(lambda part: part).init(jax.random.key(1), x)
    planned = {}
    for name, wrap in {"kept": lambda part: part, "flax": nn.remat, "ours": recomputed}.items():
        step = jax.jit(jax.grad(lambda p, w=wrap: jnp.square(Chain(w).apply(p, x)).mean()))
        memory = step.lower(params).compile().memory_analysis()
        planned[name] = memory.temp_size_in_bytes / (2000 * 256 * 4)  # in wide arrays
    assert planned["kept"] > 8 and planned["ours"] < 4, planned


def test_frozen_blocks_are_computed_once(how):
    frozen = frozenset(
        layer for block in FIRST_BLOCKS for layer in layer_names("tiny_lite0")[block]
    )
    counted = {}
    for held in (frozenset(), frozen):
        for remat in (False, True):
            loss, trained = gradient(remat, held)
            counted[bool(held), remat] = count_flops(jax.grad(loss, has_aux=True), trained)
    more, more_of_frozen = (counted[held, True] - counted[held, False] for held in (False, True))
    # A forward pass of the blocks that train, a third of all that is computed for them.
    assert 0 < more_of_frozen < more
    assert counted[True, True] < counted[False, True]


@pytest.mark.usefixtures("compiled")
def test_gradients_of_some_arguments_whole_numbers_and_none():
    """Against the same without it, for a module of arguments that have no gradient."""

    class Scaled(nn.Module):
        @nn.compact
        def __call__(self, x, keep, nothing, again=False):
            run = recomputed(Scaled._inside) if again else Scaled._inside
            return run(self, x, keep, nothing)

        def _inside(self, x, keep, nothing):
            assert nothing is None
            x = nn.Dense(5, name="dense")(jnp.sin(x))
            seen = self.variable("batch_stats", "seen", jnp.zeros, (5,))
            seen.value = x.mean(0)
            return jnp.where(keep[:, None], x, 0)

    module, keep = Scaled(), jnp.array([True, False, True])
    x = jax.random.normal(jax.random.key(0), (3, 4))
    given = module.init(jax.random.key(1), x, keep, None)

    def value(params, x, again):
        out, updated = module.apply(
            {**given, "params": params}, x, keep, None, again, mutable=["batch_stats"]
        )
        return jnp.square(out).sum() + updated["batch_stats"]["seen"][0], updated

    for by in (0, 1, (0, 1)):
        pairs = [
            jax.grad(value, argnums=by, has_aux=True)(given["params"], x, again)
            for again in (False, True)
        ]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), *pairs)


@pytest.mark.usefixtures("compiled")
def test_random_draws_are_the_same_both_times():
    class Dropped(nn.Module):
        @nn.compact
        def __call__(self, x, again=False):
            return (recomputed(Dropped._inside) if again else Dropped._inside)(self, x)

        def _inside(self, x):
            x = nn.Dropout(0.5, deterministic=False)(jnp.sin(x))
            x = nn.Dense(6, name="dense")(x)
            return x * jax.random.normal(self.make_rng("dropout"), x.shape)

    x = jax.random.normal(jax.random.key(0), (5, 6))
    keys = {"params": jax.random.key(1), "dropout": jax.random.key(2)}
    params = Dropped().init(keys, x)

    def value(params, x, again):
        out = Dropped().apply(params, x, again, rngs={"dropout": jax.random.key(3)})
        return jnp.square(out).sum()

    plain, twice = (jax.grad(value, argnums=(0, 1))(params, x, again) for again in (False, True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), plain, twice)


def test_networks_of_other_devices_take_that_of_flax(monkeypatch):
    """Compiled code is of one CPU device alone."""
    taken = []
    monkeypatch.setattr(native, "is_loaded", lambda: False)
    monkeypatch.setattr(nn, "remat", lambda method: taken.append(method) or method)
    assert recomputed(efficientnet.EfficientNet._block) is efficientnet.EfficientNet._block
    assert taken == [efficientnet.EfficientNet._block]

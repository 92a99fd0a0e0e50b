"""Initial variables of a network, its kernels drawn together by one small program.

Flax draws each kernel by operations of its own; EfficientNet-B4 has 130, and compiling them takes
longer than compiling many a train step. Here a loop draws all kernels, cut into chunks of one size.
The values are Flax's: by JAX's partitionable Threefry generator, element i of an array depends on
the key and on i alone.
"""

import contextvars
import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.extend import random as generators

Tree = Any
_CHUNK = 4096
_STD = np.float32(0.87962566103423978)  # of a standard normal truncated to (-2, 2)


class _Draw(NamedTuple):
    placeholder: jax.Array  # zeros in place of the kernel
    key: jax.Array
    scale: np.float32


_recorded: contextvars.ContextVar[list[_Draw]] = contextvars.ContextVar("_recorded")


def variance_scaling(scale: float, mode: Literal["fan_in", "fan_out"]) -> Callable[..., jax.Array]:
    """Returns `nn.initializers.variance_scaling(scale, mode, "truncated_normal")`.

    `init_variables` draws all kernels of this initializer together.

    Args:
      scale: variance of a kernel times its fan.
      mode: "fan_in" or "fan_out".
    """
    plain = nn.initializers.variance_scaling(scale, mode, "truncated_normal")
    axis = {"fan_in": -2, "fan_out": -1}[mode]

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        draws = _recorded.get(None)
        if draws is None or dtype != jnp.float32:
            return plain(key, shape, dtype)
        variance = np.float32(scale / (math.prod(shape[:-2]) * shape[axis]))
        draws.append(_Draw(jnp.zeros(shape, dtype), key, np.sqrt(variance) / _STD))
        return draws[-1].placeholder

    return init


def kernel_of(module: nn.Module, init: Callable[..., jax.Array], shape: tuple[int, ...]) -> Any:
    """Returns the parameter `kernel` of a module, float32 of `shape`, made by `init` if need be.

    Where it is given, Flax still traces the initializer, to compare shapes: an eighth of the time
    that tracing EfficientNet-B4 takes.
    """
    known = module.has_variable("params", "kernel")
    return module.param("kernel", nn.initializers.zeros if known else init, shape, jnp.float32)


def init_variables(model: nn.Module, key: jax.Array, *inputs: jax.ShapeDtypeStruct) -> Tree:
    """Returns the initial variables of a network, those of `model.init(key, *inputs)`.

    Args:
      model: the network.
      key: PRNG key.
      *inputs: shapes and dtypes of the images and of other inputs.

    Returns:
      Variables; kernels by `variance_scaling` are NumPy arrays, unless `key` is traced.
    """
    partitionable = jax.config.values["jax_threefry_partitionable"]
    threefry = str(jax.random.key_impl(key)) == "threefry2x32"
    plan = _plan(model, inputs) if partitionable and threefry else None
    if plan is None:
        return jax.jit(lambda key: model.init(key, *map(_zeros, inputs)))(key)
    leaves, drawn = plan.run(key)
    # Cutting kernels out of the chunks on the device would take a program for each.
    chunks: Any = drawn if isinstance(drawn, jax.core.Tracer) else np.asarray(drawn)
    start = 0
    for leaf, shape in plan.drawn.items():
        size = math.prod(shape)
        stop = start + _chunks(size)
        leaves[leaf] = chunks[start:stop].reshape(-1)[:size].reshape(shape)
        start = stop
    return jax.tree.unflatten(plan.tree, leaves)


class _Plan(NamedTuple):
    """How the variables of a network are made.

    Attributes:
      run: key -> leaves of the variables, None for drawn kernels; chunks of these [N, CHUNK].
      drawn: number of a leaf -> its shape, in the order of the chunks.
      tree: structure of the variables.
    """

    run: Callable[[jax.Array], tuple[list[Any], jax.Array]]
    drawn: dict[int, tuple[int, ...]]
    tree: Any


@functools.lru_cache(maxsize=8)
def _plan(model: nn.Module, inputs: tuple[jax.ShapeDtypeStruct, ...]) -> _Plan | None:
    """Traces `model.init`. None: nothing to draw, or keys that are not folded as Flax does."""
    draws: list[_Draw] = []
    drawn: dict[int, _Draw] = {}
    structure: list[Any] = []

    def record(key: jax.Array) -> tuple[list[jax.Array], list[jax.Array]]:
        token = _recorded.set(draws)
        try:
            variables = model.init(key, *map(_zeros, inputs))
        finally:
            _recorded.reset(token)
        leaves, tree = jax.tree.flatten(variables)
        structure.append(tree)
        by_placeholder = {id(draw.placeholder): draw for draw in draws}
        for number, leaf in enumerate(leaves):
            if id(leaf) in by_placeholder:
                drawn[number] = by_placeholder[id(leaf)]
        return leaves, [draw.key for draw in drawn.values()]

    closed = jax.make_jaxpr(record)(jax.random.key(0))
    words = _folded(closed, len(drawn))
    if not drawn or len(drawn) < len(draws) or words is None:
        return None
    shapes = {number: draw.placeholder.shape for number, draw in drawn.items()}
    counts = [_chunks(math.prod(shape)) for shape in shapes.values()]
    of_draw = np.repeat(np.arange(len(counts)), counts)
    starts = np.concatenate([np.arange(count, dtype=np.uint32) * _CHUNK for count in counts])
    scales = np.array([draw.scale for draw in drawn.values()])[of_draw]
    words = words[of_draw]

    @jax.jit
    def run(key: jax.Array) -> tuple[list[Any], jax.Array]:
        def draw(chunk: tuple[jax.Array, ...]) -> jax.Array:
            word, start, scale = chunk
            folded = jax.random.key_data(jax.random.fold_in(key, word))
            part = jax.random.wrap_key_data(jnp.append(folded, start), impl=_FROM)
            return jax.random.truncated_normal(part, -2, 2, (_CHUNK,), jnp.float32) * scale

        found = core.jaxpr_as_fun(closed)(key)[: structure[0].num_leaves]
        leaves = [None if number in shapes else leaf for number, leaf in enumerate(found)]
        return leaves, jax.lax.map(draw, (words, starts, scales))

    return _Plan(run, shapes, structure[0])


def _chunks(size: int) -> int:
    return -(-size // _CHUNK)


def _zeros(shape: jax.ShapeDtypeStruct) -> jax.Array:
    return jnp.zeros(shape.shape, shape.dtype)


def _folded(closed: core.ClosedJaxpr, count: int) -> np.ndarray | None:
    """Returns what is folded into the key for each of the last `count` results, uint32 [count].

    None: one of them is made in another way.
    """
    jaxpr = closed.jaxpr
    values = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    makers = {eqn.outvars[0]: eqn for eqn in jaxpr.eqns if eqn.primitive.name == "random_fold_in"}
    words = []
    for key in jaxpr.outvars[len(jaxpr.outvars) - count :]:
        maker = makers.get(key)
        if maker is None or maker.invars[0] is not jaxpr.invars[0]:
            return None
        word = maker.invars[1]
        value = word.val if isinstance(word, core.Literal) else values.get(word)
        if value is None:
            return None
        words.append(int(value))
    return np.array(words, np.uint32)


def _random_bits(key: jax.Array, bit_width: int, shape: tuple[int, ...]) -> jax.Array:
    """Draws 32 bits for each element, as JAX does, but from element `key[2]` on."""
    if bit_width != 32:
        raise NotImplementedError(f"{bit_width} bits")
    low = key[2] + jax.lax.iota(np.uint32, math.prod(shape))
    one, two = (jnp.full_like(low, key[part]) for part in (0, 1))
    bits = generators.threefry2x32_p.bind(one, two, jnp.zeros_like(low), low)
    return jnp.reshape(bits[0] ^ bits[1], shape)


def _not_needed(*_: Any) -> Any:
    raise NotImplementedError


# JAX's generator, for a part of an array: the key holds the first element, too.
_FROM = generators.define_prng_impl(
    key_shape=(3,),
    seed=_not_needed,
    split=_not_needed,
    random_bits=_random_bits,
    fold_in=_not_needed,
    name="threefry2x32_from",
    tag="fryf",
)

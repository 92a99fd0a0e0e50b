"""Fits a view network to the radiographs of a data set, without labels, within seconds."""

import itertools
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from boneage_jax.data.handless import KINDS
from boneage_jax.data.source import Split
from boneage_jax.inference.view import View
from boneage_jax.inference.view_network import (
    NONE,
    SEVERAL,
    SHAPES,
    Weights,
    apply,
    forward_flops,
    thumbnail,
)
from boneage_jax.models.flops import count_flops
from boneage_jax.training.describe import say
from boneage_jax.training.view_examples import BASE, Examples, draw_examples

_BATCH = 128
_LEARNING_RATE = 4e-3
_WARMUP = 0.15  # fraction of the steps
_SHARE = 0.15  # of the FLOPs of the training that the fit may cost
_FEWEST_STEPS = 100  # fewer tell little
_RADIOGRAPHS = range(300, 4001)  # fewer tell little, more do not help
_BACKWARD = 2  # times the FLOPs of a forward pass
_MEASURED = 400  # images of training that the threshold is measured on, beside those of validation


def view_steps(most: int, images: int, train_flops: int) -> int:
    """Returns the number of steps of a fit; 0 if it is not worth it.

    Args:
      most: `config.view_steps`.
      images: number of radiographs of training.
      train_flops: FLOPs of the training whose predictions the view network accompanies.
    """
    each = (1 + _BACKWARD) * _BATCH * forward_flops()
    steps = min(int(_SHARE * train_flops) // each, most)
    return steps if steps >= _FEWEST_STEPS and images >= _RADIOGRAPHS[0] else 0


def make_view(
    train: Split, validation: Split, config: ConfigDict, train_flops: int
) -> tuple[View | None, int]:
    """Fits a view network to the training split and sets its threshold on the validation split.

    Args:
      train, validation: splits of radiographs.
      config: config of the training; its `view_steps` and `seed` are read.
      train_flops: see `view_steps`.

    Returns:
      (view network, or None if there are too few images or steps; FLOPs of the fit).
    """
    steps = view_steps(config.view_steps, len(train), train_flops)
    if not steps:
        return None, 0
    fitted = train.sample(_RADIOGRAPHS[-1])
    say(f"view network: {steps} steps on {len(fitted)} radiographs")
    weights, flops = fit_view(fitted.images(), steps, seed=config.seed)
    measured = itertools.chain(validation.images(), train.sample(_MEASURED).images())
    return View.calibrated(weights, measured), flops


def fit_view(
    images: Iterable[np.ndarray],
    steps: int,
    *,
    seed: int = 0,
    kinds: Sequence[str] = tuple(KINDS),
) -> tuple[Weights, int]:
    """Fits a view network.

    Args:
      images: uint8 [H, W] each, radiographs of training.
      steps: optimizer steps of 128 examples.
      seed: seed of all draws.
      kinds: kinds of pictures without a hand, see `boneage_jax.data.handless`.

    Returns:
      (weights by the names in `boneage_jax.inference.view_network.SHAPES`; FLOPs of the fit).
    """
    radiographs = np.stack([thumbnail(image, BASE) for image in images])
    rng = np.random.default_rng(seed)
    weights = _initial(rng)
    schedule = optax.schedules.cosine_onecycle_schedule(steps, _LEARNING_RATE, _WARMUP)
    optimizer = optax.adam(schedule)
    state = optimizer.init(weights)

    def step(weights, state, examples):  # type: ignore[no-untyped-def]
        gradients = jax.grad(_loss)(weights, examples)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(weights, updates), state

    compiled, flops = jax.jit(step), 0
    for _ in range(steps):
        examples = draw_examples(radiographs, rng, _BATCH, kinds)
        flops = flops or count_flops(step, weights, state, examples)
        # Not waited for: the next examples are drawn meanwhile.
        weights, state = compiled(weights, state, examples)
    return {name: np.asarray(values) for name, values in weights.items()}, steps * flops


def _initial(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draws weights by He's rule; those of the output are small, so that all classes are likely."""
    found = {}
    for name, shape in SHAPES.items():
        scale = np.sqrt(2 / shape[0]) * (0 if "bias" in name else 0.1 if name == "output" else 1)
        found[name] = (scale * rng.standard_normal(shape)).astype(np.float32)
    return found


def _loss(weights: Weights, examples: Examples) -> jax.Array:
    outputs = apply(weights, examples.thumbnails, jnp)
    # How several hands are turned does not matter. Without a hand all should be as likely as the
    # others (outlier exposure, Hendrycks et al. 2019).
    known = jnp.select([examples.kind == SEVERAL, examples.kind == NONE], [0.0, 2.0], 1.0)
    turn = optax.softmax_cross_entropy(outputs.turn, examples.turn)
    inverted = optax.sigmoid_binary_cross_entropy(outputs.inverted, examples.inverted)
    kind = optax.softmax_cross_entropy_with_integer_labels(outputs.kind, examples.kind)
    frame = jnp.abs(outputs.frame - examples.frame).sum(1) * examples.framed
    return (known * (turn + inverted) + 3 * kind + 2 * frame).mean()

"""`boneage_jax.inference.view.View` in JAX, for graphs that put radiographs right and judge them.

The graph knows a radiograph as a square only, so it does to it what `View.put_right` would do to a
file of that square: all that is done, at the resolution of the square and with its proportions.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from boneage_jax.exporting.boxed_picture import (
    Boxed,
    averaged,
    choose,
    fitted,
    turned,
    turned_by_45,
    whole,
    without_margins,
    without_white_frame,
)
from boneage_jax.inference.view import (
    MIN_SIDE,
    PROPER,
    SMALL,
    SURE,
    SURELY_INVERTED,
    TIMES,
    VARIANTS,
    WHITE,
    View,
)
from boneage_jax.inference.view_network import (
    SIDE,
    SINGLE,
    TURNS,
    Weights,
    apply,
    is_two_toned,
)

FITS = ("pad", "stretch")  # that `put_right` knows


class _Reading(NamedTuple):
    """Logarithms of probabilities, see `boneage_jax.inference.view.Reading`.

    Attributes:
      glance: score of the picture as it is, [B]; that of the others is the mean of all variants.
    """

    turn: jax.Array
    inverted: jax.Array
    kind: jax.Array
    frame: jax.Array
    glance: jax.Array

    @property
    def proper(self) -> jax.Array:
        return self.turn[:, 0] + self.inverted[:, 0] + self.kind[:, SINGLE]


def put_right(view: View, images: jax.Array, fit: str) -> jax.Array:
    """Undoes turns by steps of 45 degrees, inversion, white frames and wide surroundings.

    Args:
      view: a fitted view network.
      images: uint8 [B, S, S, 1].
      fit: pad or stretch, how radiographs became squares.

    Returns:
      uint8 [B, S, S, 1]; where nothing is to be undone, the image itself.
    """
    picture = whole(images[..., 0].astype(jnp.float32))
    picture = without_white_frame(picture, WHITE, MIN_SIDE)

    def unfinished(state: tuple[jax.Array, Boxed, jax.Array]) -> jax.Array:
        count, _, going = state
        return (count < TIMES) & going.any()

    def step(state: tuple[jax.Array, Boxed, jax.Array]) -> tuple[jax.Array, Boxed, jax.Array]:
        count, before, going = state
        picture, changed = _improved(view.weights, before)
        return count + 1, choose(going, picture, before), going & changed

    start = jnp.int32(0), picture, jnp.ones(images.shape[0], bool)
    _, picture, _ = jax.lax.while_loop(unfinished, step, start)
    return fitted(picture, fit).astype(jnp.uint8)[..., None]


def is_single_hand(view: View, images: jax.Array) -> jax.Array:
    """Tells radiographs of single, upright hands from everything else, see `View.judge`; bool [B].

    Args:
      view: a fitted view network.
      images: uint8 [B, S, S, 1].
    """
    picture = without_margins(whole(images[..., 0].astype(jnp.float32)))
    drawn = is_two_toned(averaged(picture, SIDE))
    return (_read(view.weights, picture).proper >= view.threshold) & ~drawn


def _improved(weights: Weights, picture: Boxed) -> tuple[Boxed, jax.Array]:
    """Undoes a turn and an inversion, else cuts out; whether anything was done, bool [B]."""
    inner = without_margins(picture)
    seen = _read(weights, inner)
    good = seen.glance >= PROPER
    hand = seen.kind[:, SINGLE] >= SURE
    step = seen.turn.argmax(1).astype(jnp.float32)
    step = jnp.where(seen.turn.max(1) > SURE, step, 0.0)
    swap = seen.inverted[:, 1] > SURELY_INVERTED
    wrong = ~good & hand & ((step > 0) | swap)
    swapped = picture._replace(
        pixels=jnp.where(jnp.expand_dims(swap, (1, 2)), 255 - picture.pixels, picture.pixels)
    )
    cut, is_small = _cut_out(picture, inner, seen.frame)
    small = (good | hand) & ~wrong & is_small
    picture = choose(small, cut, picture)
    return choose(wrong, _turned_back(swapped, step), picture), wrong | small


def _read(weights: Weights, picture: Boxed) -> _Reading:
    """Reads pictures under quarter turns and inversions, and averages, as `View.read` does."""
    x = averaged(picture, SIDE)
    shown = [jnp.rot90(255 - x if swap else x, quarter, (1, 2)) for quarter, swap in VARIANTS]
    with jax.default_matmul_precision("highest"):
        turn, inverted, kind, frame = apply(weights, jnp.stack(shown), jnp, _taps)
    logits = jnp.stack([0 * inverted, inverted], axis=-1)
    turn, inverted, kind = (jax.nn.log_softmax(logits) for logits in (turn, logits, kind))
    turns, inversions = [], []
    for n, (quarter, swap) in enumerate(VARIANTS):
        turns.append(jnp.roll(turn[n], -2 * quarter, axis=1))
        inversions.append(inverted[n, :, :: -1 if swap else 1])
    glance = turns[0][:, 0] + inversions[0][:, 0] + kind[0, :, SINGLE]
    mean = [sum(some[1:], some[0]) / len(VARIANTS) for some in (turns, inversions)]
    return _Reading(mean[0], mean[1], kind.mean(0), frame[0], glance)


def _taps(x: jax.Array, size: int) -> jax.Array:
    """Returns what `view_network._taps` does, by one gather instead of slices for each tap."""
    side, channels = x.shape[-2:]
    half = size // 2
    x = jnp.pad(x, (*[(0, 0)] * (x.ndim - 3), (half, half), (half, half), (0, 0)))
    padded, cells = side + 2 * half, side // 2
    corners = 2 * (np.arange(cells)[:, None] * padded + np.arange(cells))
    taps = np.arange(size)[:, None] * padded + np.arange(size)
    x = x.reshape(*x.shape[:-3], padded * padded, channels)
    x = jnp.take(x, corners.reshape(-1, 1) + taps.reshape(-1), axis=-2)
    return x.reshape(*x.shape[:-3], cells, cells, size * size * channels)


def _turned_back(picture: Boxed, steps: jax.Array) -> Boxed:
    """Turns clockwise by steps of 45 degrees, 0 to 7, [B]."""
    left = jnp.where(steps > 0, TURNS - steps, 0.0)  # of whole numbers; ONNX gets no % by jax2onnx
    quarters = jnp.floor(left / 2)
    picture = turned(picture, quarters)
    odd = left > 2 * quarters
    return jax.lax.cond(
        odd.any(), lambda: choose(odd, turned_by_45(picture), picture), lambda: picture
    )


def _cut_out(picture: Boxed, inner: Boxed, frame: jax.Array) -> tuple[Boxed, jax.Array]:
    """Returns the part around a hand that is small in its picture, and whether it is, bool [B].

    Args:
      picture: pictures.
      inner: the same without margins.
      frame: see `boneage_jax.inference.view_network.Outputs`.
    """
    rows, columns = inner.height, inner.width
    width, height = (jnp.exp(jnp.minimum(frame[:, at], 0)) for at in (2, 3))
    fills = jnp.maximum(width * columns / picture.width, height * rows / picture.height) > SMALL
    ends = []
    for offset, part, length, (first, after) in (
        (frame[:, 1], height, rows, inner.rows),
        (frame[:, 0], width, columns, inner.columns),
    ):
        cuts = (jnp.round(length * (0.5 + offset + half * part)) for half in (-0.5, 0.5))
        low, high = (jnp.clip(first + cut, first, after) for cut in cuts)
        ends.append((low, high))
    only_margins = jnp.maximum(width, height) > SMALL
    cut = choose(only_margins, inner, Boxed(picture.pixels, *ends))
    return cut, ~fills & (jnp.minimum(cut.height, cut.width) >= MIN_SIDE)

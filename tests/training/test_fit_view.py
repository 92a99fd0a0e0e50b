"""The examples of a view network against what was done to the radiographs, and what a fit costs."""

import jax.numpy as jnp
import numpy as np
import pytest

from boneage_jax.config import base_config
from boneage_jax.data.source import Split
from boneage_jax.inference.view_network import (
    NONE,
    SEVERAL,
    SHAPES,
    SINGLE,
    apply,
    forward_flops,
    thumbnail,
)
from boneage_jax.models.flops import count_flops
from boneage_jax.training.fit_view import fit_view, make_view, view_steps
from boneage_jax.training.view_examples import BASE, VARIANTS, draw_examples
from tfds_rsna.hand_phantom.render import make_phantom


@pytest.fixture(scope="module")
def examples():
    radiographs = np.stack([make_phantom(index, BASE).image for index in range(4)])
    return draw_examples(radiographs, np.random.default_rng(0), 100 * VARIANTS)


def test_examples_are_labelled_by_what_was_done(examples):
    assert set(examples.kind.tolist()) == {SINGLE, SEVERAL, NONE}
    np.testing.assert_allclose(examples.turn.sum(1), 1, rtol=1e-6)
    none, single = examples.kind == NONE, examples.kind == SINGLE
    assert (examples.turn[none] == 1 / 8).all() and (examples.inverted[none] == 0.5).all()
    assert not examples.framed[~single].any() and 0.1 < examples.framed[single].mean() < 0.6
    width, height = np.exp(examples.frame[examples.framed == 1, 2:]).T
    assert min(width.min(), height.min()) > 0.2 and max(width.max(), height.max()) < 2


def test_variants_are_the_turns_and_inversions_that_they_are_labelled_as(examples):
    first = np.arange(0, len(examples.kind), VARIANTS)
    for at in range(1, VARIANTS):
        for row in first[examples.kind[first] == SINGLE]:
            steps = [
                s
                for s in range(0, 8, 2)
                if np.allclose(np.roll(examples.turn[row], s), examples.turn[row + at])
            ]
            assert len(steps) == 1
            expected = np.rot90(examples.thumbnails[row], steps[0] // 2)
            expected = 255 - expected if examples.inverted[row + at] else expected
            np.testing.assert_array_equal(examples.thumbnails[row + at], expected)


def test_numpy_and_jax_run_one_network_of_counted_flops():
    rng = np.random.default_rng(0)
    weights = {k: rng.normal(0, 0.1, shape).astype(np.float32) for k, shape in SHAPES.items()}
    x = rng.integers(0, 256, (2, 48, 48), dtype=np.uint8)
    for ours, theirs in zip(apply(weights, x), apply(weights, x, jnp), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    assert 2 * forward_flops() == count_flops(lambda w, t: apply(w, t, jnp), weights, x)
    assert forward_flops() < 5e6 / 3


def test_a_fit_learns_at_the_counted_cost():
    radiographs = [make_phantom(index, 64).image for index in range(20)]
    weights, flops = fit_view(radiographs, 12)
    assert flops == pytest.approx(12 * 3 * 128 * forward_flops(), rel=0.1)
    # What the first steps learn is what is most frequent: a single hand.
    kinds = apply(weights, np.stack([thumbnail(image) for image in radiographs])).kind
    assert (kinds.argmax(1) == SINGLE).mean() > 0.9


def test_few_radiographs_have_no_view_network():
    split = Split("train", [{"image": np.zeros((64, 64, 1), np.uint8)}], np.zeros(299, int), {})
    assert make_view(split, split, base_config(), 10**15) == (None, 0)


@pytest.mark.parametrize(
    ("most", "images", "flops", "steps"),
    [
        (3000, 300, 1e15, 3000),
        (3000, 299, 1e15, 0),
        (0, 10_000, 1e15, 0),
        (3000, 10_000, 1e11, 0),
        (3000, 10_000, 2e12, 658),
    ],
)
def test_a_fit_costs_a_part_of_its_training(most, images, flops, steps):
    found = view_steps(most, images, int(flops))
    assert found == pytest.approx(steps, abs=5)
    assert 3 * 128 * found * forward_flops() <= 0.15 * flops

"""Pictures without a hand: of the size asked for, never blank, drawn by the generator alone."""

import numpy as np
import pytest

from boneage_jax.data.handless import KINDS, draw_handless


@pytest.mark.parametrize("size", [48, 97])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_shows_something(kind, size):
    pictures = [draw_handless(kind, np.random.default_rng(seed), size) for seed in range(12)]
    for seed, picture in enumerate(pictures):
        assert picture.shape == (size, size) and picture.dtype == np.uint8
        assert np.ptp(picture) >= 10
        again = draw_handless(kind, np.random.default_rng(seed), size)
        np.testing.assert_array_equal(picture, again)
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)

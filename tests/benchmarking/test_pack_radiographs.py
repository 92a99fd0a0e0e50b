"""Radiographs packed for a transfer: what comes back is close to what was packed."""

import cv2
import numpy as np
import pytest

from benchmarks.studies import pack_radiographs as packing
from boneage_jax.data.files import read_grey
from boneage_jax.errors import InputError


def radiograph(rng, low, high):
    """A hand-like blob with fine detail between two grey levels, and a bright marker."""
    y, x = np.mgrid[:96, :96] / 96
    hand = np.clip(np.sin(6 * x) * np.sin(5 * y) + 0.3 * np.sin(60 * x + 40 * y), -1, 1) / 2 + 0.5
    image = low + (high - low) * hand + rng.normal(0, 0.5, hand.shape)
    image[:6, :10] = 255
    return np.clip(image, 0, 255).astype(np.uint8)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    inner = tmp_path / "boneage-training-dataset" / "boneage-training-dataset"
    inner.mkdir(parents=True)
    for number in range(1, 7):
        cv2.imwrite(str(inner / f"{number}.png"), radiograph(rng, 40, 40 + 30 * number))
    rows = [f"{number},{number * 12},{number % 2 == 0}" for number in range(1, 7)]
    (tmp_path / "boneage-training-dataset.csv").write_text("\n".join(["id,boneage,male", *rows]))
    return tmp_path


def test_a_pack_gives_back_pictures_and_labels(folder, tmp_path):
    said = packing.pack(folder, tmp_path / "pack.npz", 96, 40_000)
    assert said.startswith("6 images of 96 px, WebP quality ")
    assert (tmp_path / "pack.npz").stat().st_size < 45_000
    assert packing.unpack(tmp_path / "pack.npz", tmp_path / "out").startswith("6 images, 42.0")
    name = "boneage-training-dataset"
    table = (tmp_path / "out" / f"{name}.csv").read_text()
    assert table.splitlines()[:3] == ["id,boneage,male", "1,12,False", "2,24,True"]
    for number in range(1, 7):
        before = read_grey(folder / name / name / f"{number}.png").astype(float)
        after = read_grey(tmp_path / "out" / name / name / f"{number}.png").astype(float)
        # Of the 30 levels of the first one, as little is lost as of the 180 of the last.
        hand = np.s_[16:, 16:]  # away from the marker
        lost = np.sqrt(np.mean((after[hand] - before[hand]) ** 2))
        assert lost < 0.02 * 30 * number + 0.5


@pytest.mark.parametrize("low, high", [(0, 1), (0, 255), (40, 66), (255, 255), (250, 255)])
def test_spreading_is_undone(low, high):
    levels = np.random.default_rng(1).integers(low, high + 1, (64, 64)).astype(np.uint8)
    knots = packing.knots_of(levels)
    back = packing.unspread(packing.spread(levels, knots), knots)
    rare = (levels > knots.high) | (levels < knots.low)  # at most 1.5 %, kept roughly
    assert np.abs(back.astype(int) - levels)[~rare].max() <= 1
    assert rare.mean() <= 0.015


def test_what_does_not_fit_is_said(folder, tmp_path):
    with pytest.raises(InputError, match="6 images of 96 pixels do not fit"):
        packing.pack(folder, tmp_path / "pack.npz", 96, 100)

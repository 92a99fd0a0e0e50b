"""A graph removes the background as `boneage_jax.data.masks` does."""

import dataclasses

import cv2
import jax
import numpy as np
import pytest

from boneage_jax.data.masks import clean_mask, remove_background, unfit
from boneage_jax.errors import InputError
from boneage_jax.exporting import export_run
from boneage_jax.exporting.program import _hand_mask
from boneage_jax.exporting.without_background import filled, largest_part, without_background
from boneage_jax.inference.background_removal import Background
from tests.exporting.conftest import hand


def _blobs():
    """Masks of several parts with holes, coarse to fine, an empty and a full one."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(8, 48, 48)).astype(np.float32)
    found = [cv2.GaussianBlur(x, (0, 0), 1 + n / 3) > 0.02 * n for n, x in enumerate(noise)]
    return np.stack([*found, np.zeros((48, 48), bool), np.ones((48, 48), bool)])


def test_cleans_masks_as_opencv_does():
    masks = _blobs()
    found = jax.jit(lambda x: filled(largest_part(x)))(masks)
    np.testing.assert_array_equal(found, np.stack([clean_mask(mask) for mask in masks]))


def test_follows_a_spiral():
    """As many bends as a mask can have."""
    spiral = np.zeros((33, 33), bool)
    y, x, way = 0, 0, (0, 1)
    spiral[y, x] = True
    for length in [32, 32, *np.repeat(np.arange(30, 1, -2), 2)]:
        for _ in range(length):
            y, x = y + way[0], x + way[1]
            spiral[y, x] = True
        way = way[1], -way[0]
    speck = spiral.copy()
    speck[2, 0] = True
    np.testing.assert_array_equal(
        jax.jit(largest_part)(speck[None])[0], clean_mask(speck, fill=False)
    )


def test_multiplies_as_files_are_multiplied():
    """A disc in a picture of four times the side: the edges of the squares are partly dark."""
    y, x = np.mgrid[:64, :64]
    distance = np.hypot(y - 30, x - 34)
    p_hand = (255 / (1 + np.exp(distance - 20))).astype(np.uint8)
    p_hand[5:8, 5:8] = 255  # a speck
    p_hand[28:31, 30:33] = 0  # a hole
    image = np.random.default_rng(0).integers(60, 220, (256, 256)).astype(np.uint8)
    image = cv2.GaussianBlur(image, (0, 0), 8)
    wanted = remove_background(image, clean_mask(unfit(p_hand, 256, 256) > 127), "multiply", 64)
    square = cv2.resize(image, (64, 64), interpolation=cv2.INTER_AREA)
    found = jax.jit(without_background)(square[None, ..., None], p_hand[None])[0, ..., 0]
    away = np.abs(np.asarray(found).astype(int) - wanted)
    assert away.mean() < 0.5 and away[distance < 18].max() <= 1 and not found[:10].any()


def test_without_a_hand_the_background_stays():
    image = np.full((1, 32, 32, 1), 100, np.uint8)
    p_hand = np.zeros((1, 32, 32), np.uint8)
    p_hand[0, 3, 3] = 255
    np.testing.assert_array_equal(jax.jit(without_background)(image, p_hand), image)


@pytest.mark.parametrize("mode", ["multiply", "crop", "upright"])
def test_only_what_predict_does_is_done_inside(mode, workdirs):
    background = Background(workdirs / "unet", mode)
    found = _hand_mask(background)
    if mode != "multiply":  # cut out of the file, whose pixels the graph does not have
        assert found is None
        return
    squares = [hand(n) for n in range(4)]
    wanted = np.stack([background(square, "", 64) for square in squares])
    ours = np.asarray(jax.jit(found.applied)(np.stack(squares)[..., None]))[..., 0]
    # But for edges, which are partly dark as those of larger files are.
    assert (ours != wanted).mean() < 0.05 and (wanted == 0).any()


@pytest.fixture
def masked(ages, masks):
    """A network that was trained without background, with a U-Net of random weights."""
    info = dataclasses.replace(ages.network.info, background="multiply")
    network = dataclasses.replace(ages.network, info=info)
    return dataclasses.replace(ages, network=network, hand_mask=masks)


def test_onnx_removes_the_background(masked):
    pytest.importorskip("jax2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    if not jax.__version__.startswith("0.10."):
        pytest.skip("jax2onnx needs jax 0.10")
    from boneage_jax.exporting.onnx_graph import to_onnx

    squares, male = [hand(n) for n in range(6)], np.arange(6, dtype=np.int32) % 3 - 1
    images = np.stack(squares)[..., None]
    content = to_onnx(masked).SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    found = session.run(["bone_age_months"], {"image": images, "male": male})[0]
    dark = jax.jit(masked.hand_mask.applied)(images)
    assert (np.asarray(dark) != images).any()
    wanted = masked.read(list(np.asarray(dark)[..., 0]), male)["bone_age_months"]
    np.testing.assert_allclose(found, wanted, atol=1e-3)


def test_what_removes_the_background_is_said(masked, tmp_path):
    """Inside, or by whoever calls; the page cannot."""
    said = export_run._left_out(masked)[0]
    assert "removed inside" in said and "64 pixels" in said
    said = export_run._left_out(masked.prepared())[0]
    assert "not removed (multiply)" in said and masked.prepared().hand_mask is None
    with pytest.raises(InputError, match="without background"):
        export_run.FORMATS["web"](masked, export_run.Request("", tmp_path / "page.html"))

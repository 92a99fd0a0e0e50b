"""Phantoms that are turned, inverted, small, doubled or no hand, through a fitted view network.

view_of_phantoms.npz holds weights of `fit_view` on 300 phantoms of 96 px, 700 steps, rounded to
float16, with the threshold that 100 others gave.
"""

import copy
import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest

from boneage_jax.data.handless import KINDS, draw_handless
from boneage_jax.errors import InputError
from boneage_jax.evaluation.stresses import STRESSES
from boneage_jax.inference.calibration import Calibration
from boneage_jax.inference.load_trained import load_members
from boneage_jax.inference.predictor import Predictor
from boneage_jax.inference.view import View, turn
from boneage_jax.inference.view_network import SHAPES, thumbnail, without_margins
from tfds_rsna.hand_phantom.render import make_phantom

OTHERS = [make_phantom(index, 96, "test").image for index in range(24)]


@pytest.fixture(scope="module")
def view():
    stored = dict(np.load(Path(__file__).parent / "view_of_phantoms.npz"))
    threshold = float(stored.pop("threshold"))
    return View({name: values.astype(np.float32) for name, values in stored.items()}, threshold)


def stressed(name):
    return [STRESSES[name].draw(image, np.random.default_rng(n)) for n, image in enumerate(OTHERS)]


@pytest.mark.parametrize(
    ("stress", "note"),
    [
        ("turned by 90", "turned by 90 degrees: put upright"),
        ("turned by 180", "turned by 180 degrees: put upright"),
        ("turned by 315", "turned by 45 degrees: put upright"),
        ("inverted", "inverted: grey levels swapped"),
        ("half size in a corner", "small hand: cut out"),
        ("white frame", "white frame: cut off"),
    ],
)
def test_what_is_wrong_is_put_right(view, stress, note):
    found = [view.put_right(image) for image in stressed(stress)]
    assert np.mean([note in notes for _, notes in found]) > 0.7
    exact = {"turned by 90", "turned by 180", "inverted"}
    for (image, notes), original in zip(found, OTHERS, strict=True):
        if stress in exact and notes == (note,):
            np.testing.assert_array_equal(image, original)


def test_radiographs_stay_as_they_are_but_those_that_are_inverted(view):
    """One phantom in 30 is drawn black on white, and some have a white frame."""
    for image in OTHERS:
        notes = set(view.put_right(image)[1]) - {"white frame: cut off"}
        inverted = np.median(image[[0, -1]]) > 150
        assert notes == ({"inverted: grey levels swapped"} if inverted else set())
    assert view.judge(OTHERS)[0].mean() > 0.9


def test_what_is_no_single_hand_is_rejected_with_a_reason(view):
    accepted, reasons = view.judge(stressed("doubled"))
    assert accepted.mean() < 0.2 and "more than one hand" in reasons
    rng = np.random.default_rng(0)
    drawn = [draw_handless(kind, rng, 96) for kind in KINDS for _ in range(8)]
    accepted, reasons = view.judge(drawn)
    assert accepted.mean() < 0.2 and "no hand is recognised" in reasons
    assert all(bool(why) != good for why, good in zip(reasons, accepted, strict=True))


def silhouette(image):
    """Draws the outline of a hand in two tones, as a mask of it."""
    return np.where(cv2.GaussianBlur(image, (0, 0), 2) > 60, 190, 20).astype(np.uint8)


def test_a_mask_is_no_radiograph(view):
    """Two tones; grey levels between them come from resizing and compression only."""
    hands = [image for image in OTHERS if view.judge([image])[0] and image[0, 0] < 60]
    masks = [silhouette(image) for image in hands]
    masks += [cv2.resize(mask, (290, 210)) for mask in masks]
    masks += [255 - mask for mask in masks]
    assert (view.read(masks).proper >= view.threshold).any()  # by its outline, it is a hand
    accepted, reasons = view.judge(masks)
    assert not accepted.any() and set(reasons) == {"two tones only: a mask or a drawing"}
    assert view.judge(hands)[0].all()


@pytest.mark.parametrize("image", [np.zeros((1, 1), np.uint8), np.full((9, 40), 255, np.uint8)])
def test_pictures_without_content_are_left_alone(view, image):
    found, notes = view.put_right(image)
    np.testing.assert_array_equal(found, image)
    assert notes == () and thumbnail(image).shape == (48, 48)


def test_turns():
    image = np.random.default_rng(0).integers(0, 256, (7, 5), dtype=np.uint8)
    for steps in (-8, 0, 2, 4, 6, 10):
        np.testing.assert_array_equal(turn(image, steps), np.rot90(image, steps // 2))
    smooth = OTHERS[0]
    centre = slice(34, 62)
    eighth = turn(turn(smooth, 3), -3)[centre, centre].astype(int)
    assert np.abs(eighth - smooth[centre, centre]).mean() < 6


def test_margins_of_one_grey_are_no_content():
    inner = np.arange(12, dtype=np.uint8).reshape(3, 4)
    picture = np.pad(inner, ((2, 0), (1, 5)), constant_values=200)
    np.testing.assert_array_equal(without_margins(picture), inner)
    np.testing.assert_array_equal(without_margins(inner), inner)


def calibration(view):
    return Calibration(10.0, np.zeros(10), np.eye(10), 1e9, images=100, view=view)


def test_a_view_is_kept_in_the_calibration(view, tmp_path):
    path = tmp_path / "calibration.npz"
    calibration(view).save(path)
    loaded = Calibration.load(path).view
    assert loaded.threshold == view.threshold and loaded.weights.keys() == SHAPES.keys()
    np.testing.assert_array_equal(loaded.read(OTHERS).proper, view.read(OTHERS).proper)
    calibration(None).save(path)
    assert Calibration.load(path).view is None


@pytest.mark.parametrize(
    "change",
    [
        {"hidden": None},
        {"hidden": np.zeros((2, 2))},
        {"bias_0": np.full(8, np.nan)},
        {"bias_0": np.full(8, 1e30)},
        {"output_bias": np.zeros(16, object)},
    ],
)
def test_a_damaged_view_is_one_line(view, change, tmp_path):
    path = tmp_path / "calibration.npz"
    weights = {k: v for k, v in (view.weights | change).items() if v is not None}
    calibration(dataclasses.replace(view, weights=weights)).save(path)
    with pytest.raises(InputError, match=r"calibration\.npz is damaged"):
        Calibration.load(path)


def test_a_predictor_puts_right_and_says_so(view, tmp_path):
    calibration(view).save(tmp_path / "calibration.npz")
    workdir = Path(__file__).parent / "old_workdirs" / "ensemble"
    predictor = Predictor(load_members(workdir, eval_batch_size=4), tmp_path)
    upright = next(
        image
        for image in OTHERS
        if view.put_right(np.rot90(image))[1] == ("turned by 90 degrees: put upright",)
        and not view.put_right(image)[1]
    )
    turned, noise = np.rot90(upright).copy(), draw_handless("text", np.random.default_rng(0), 96)
    found = predictor([upright, turned, noise])
    assert found["bone_age_months"][1] == found["bone_age_months"][0]
    small = "under 200 px on its short side"
    assert found["note"].tolist() == [
        small,
        f"{small}; turned by 90 degrees: put upright",
        f"{small}; no hand is recognised",
    ]
    assert found["accepted"].tolist() == [True, True, False]
    np.testing.assert_array_equal(predictor.fit(turned, ""), predictor.fit(upright, ""))
    tall = cv2.resize(upright, (60, 96))
    stretching = copy.copy(predictor)
    stretching._square_by = "stretch"
    for picture in (tall, np.rot90(tall).copy(), np.rot90(tall, 2).copy()):
        assert stretching.proportions(picture) == 60 / 96  # of the hand, not of the file
    tiny = cv2.resize(upright, (44, 39), interpolation=cv2.INTER_AREA)
    found = predictor([tiny, cv2.resize(upright, (44, 40), interpolation=cv2.INTER_AREA), upright])
    assert found["accepted"].tolist() == [False, True, True]
    tiny_note = f"{small}; under 40 px on its short side: too small"
    assert found["note"].tolist() == [tiny_note, small, small]

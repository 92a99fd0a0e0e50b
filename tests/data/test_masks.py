"""Masks as arrays: the clean-up against scipy, the geometry against drawn shapes."""

import cv2
import numpy as np
import pytest
import scipy.ndimage

from boneage_jax.data.files import fit_square
from boneage_jax.data.masks import (
    check_mask,
    clean_mask,
    remove_background,
    tilt,
    unfit,
)
from tfds_rsna.hand_phantom.render import make_phantom


def _blobs(seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(60, 47))
    return scipy.ndimage.gaussian_filter(noise, 1.5) > 0.05


@pytest.mark.parametrize("seed", range(4))
def test_the_clean_up_is_that_of_scipy(seed):
    mask = _blobs(seed)
    labels, count = scipy.ndimage.label(mask, structure=np.ones((3, 3)))
    assert count > 2
    sizes = scipy.ndimage.sum_labels(mask, labels, range(1, count + 1))
    largest = labels == 1 + int(np.argmax(sizes))
    np.testing.assert_array_equal(clean_mask(mask, fill=False), largest)
    np.testing.assert_array_equal(
        clean_mask(mask, largest=False), scipy.ndimage.binary_fill_holes(mask)
    )
    np.testing.assert_array_equal(clean_mask(mask), scipy.ndimage.binary_fill_holes(largest))
    np.testing.assert_array_equal(clean_mask(mask, largest=False, fill=False), mask)


@pytest.mark.parametrize("value", [False, True])
def test_a_uniform_mask_stays(value):
    mask = np.full((9, 11), value)
    np.testing.assert_array_equal(clean_mask(mask), mask)


@pytest.mark.parametrize("shape", [(640, 479), (300, 641), (128, 128), (97, 60)])
def test_unfit_undoes_fit_square(shape):
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    smooth = (127 + 100 * np.sin(rows / shape[0] * 5) * np.cos(columns / shape[1] * 4)).astype(
        np.uint8
    )
    back = unfit(fit_square(smooth, 128), *shape)
    assert back.shape == shape
    inner = (slice(8, -8), slice(8, -8))
    assert np.abs(back[inner].astype(int) - smooth[inner]).max() <= 4


def test_multiply_blackens_the_background_and_keeps_the_frame():
    phantom = make_phantom(3, 128)
    mask = phantom.mask > 0
    image = cv2.resize(phantom.image, (100, 128))
    small = cv2.resize(phantom.mask, (100, 128), interpolation=cv2.INTER_NEAREST) > 0
    np.testing.assert_array_equal(
        remove_background(phantom.image, mask, "multiply", 128), phantom.image * mask
    )
    np.testing.assert_array_equal(
        remove_background(image, small, "multiply", 64), fit_square(image * small, 64)
    )


def test_crop_fills_the_square_with_the_hand():
    image, mask = np.full((200, 300), 90, np.uint8), np.zeros((200, 300), bool)
    mask[40:140, 100:150] = True  # 100 x 50: with 3 % of 100 around, 106 x 56
    image[40:140, 100:150] = 200
    square = remove_background(image, mask, "crop", 106)
    assert square.shape == (106, 106)
    wanted = np.zeros((106, 106), np.uint8)
    wanted[3:103, 28:78] = 200
    np.testing.assert_array_equal(square, wanted)


def test_crop_stretches_the_grey_levels_of_the_hand():
    """The same square for any exposure, and black for the background alone."""
    phantom = make_phantom(7, 200)
    mask = phantom.mask > 0
    bright = (phantom.image * 0.5 + 90).astype(np.uint8)
    dim = (phantom.image * 0.25 + 20).astype(np.uint8)
    squares = [remove_background(image, mask, "crop", 96) for image in (bright, dim)]
    difference = squares[0].astype(int) - squares[1]
    assert np.abs(difference).mean() < 2  # a quarter of the levels, rounded
    rows, columns = np.nonzero(mask)
    side = int(max(np.ptp(rows), np.ptp(columns))) + 1
    full = remove_background(bright, mask, "crop", side + 2 * int(np.ceil(0.03 * side)))
    assert (full > 0).sum() == mask.sum()  # not resized
    low, high = np.percentile(full[full > 0], (1, 99))
    assert (low, high) == (pytest.approx(24, abs=1), pytest.approx(255, abs=1))
    assert full[full > 0].min() == 24


@pytest.mark.parametrize("mode", ["crop", "upright"])
def test_a_crop_does_not_depend_on_where_the_hand_lies(mode):
    """Moved within the frame, up to its border, the hand gives the same square."""
    phantom = make_phantom(5, 128)
    rows, columns = np.nonzero(phantom.mask)
    hand = (slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1))
    small, cut = phantom.image[hand], phantom.mask[hand] > 0
    squares = []
    for top, left in ((0, 0), (17, 40), (256 - cut.shape[0], 256 - cut.shape[1])):
        image, mask = np.full((256, 256), 70, np.uint8), np.zeros((256, 256), bool)
        place = (slice(top, top + cut.shape[0]), slice(left, left + cut.shape[1]))
        image[place], mask[place] = small, cut
        squares.append(remove_background(image, mask, mode, 96))
    for other in squares[1:]:
        np.testing.assert_array_equal(squares[0], other)


@pytest.mark.parametrize("angle", [-80, -30, -5, 0, 12, 45, 80, 90])
def test_the_tilt_of_a_drawn_ellipse(angle):
    mask = np.zeros((201, 201), np.uint8)
    # OpenCV's angle is clockwise of the first axis, which lies along x: 90 is upright.
    cv2.ellipse(mask, (100, 100), (80, 35), 90 + angle, 0, 360, 1, -1)
    found = tilt(mask > 0)
    assert min(abs(found - angle), 180 - abs(found - angle)) < 0.6


def test_a_round_mask_has_no_tilt():
    mask = np.zeros((101, 101), np.uint8)
    cv2.circle(mask, (50, 50), 30, 1, -1)
    assert tilt(mask > 0) == 0.0


@pytest.mark.parametrize("angle", [-60, -20, 35, 75])
def test_upright_turns_a_bar_upright(angle):
    mask = np.zeros((300, 300), np.uint8)
    box = cv2.boxPoints(((150, 150), (180, 50), 90 + angle))
    cv2.fillPoly(mask, [np.round(box).astype(np.int32)], 1)
    square = remove_background(mask * np.uint8(255), mask > 0, "upright", 128) > 127
    rows, columns = np.nonzero(square)
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert height == pytest.approx(128 / 1.06, abs=3)
    assert width == pytest.approx(height * 50 / 180, abs=3)


def test_masks_of_a_few_pixels_can_be_turned():
    rng = np.random.default_rng(0)
    image = np.full((40, 40), 99, np.uint8)
    for _ in range(200):
        mask = np.zeros((40, 40), bool)
        start, steps = rng.integers(5, 20, 2), rng.integers(2, 7)
        for k in range(steps):
            mask[start[0] + k, start[1] + k * rng.integers(0, 3)] = True
        assert remove_background(image, mask, "upright", 32).shape == (32, 32)
    line = np.ones((1, 2000), np.uint8)
    assert remove_background(line, line > 0, "upright", 32).shape == (32, 32)


def test_an_empty_mask_leaves_the_image():
    image = make_phantom(1, 64).image
    for mode in ("crop", "upright", "multiply"):
        np.testing.assert_array_equal(
            remove_background(image, np.zeros_like(image, bool), mode, 64), image
        )


def test_wrong_masks_are_refused():
    image = np.zeros((8, 9), np.uint8)
    for mask, mode in (
        (np.zeros((9, 8), bool), "crop"),
        (np.zeros((8, 9), np.uint8), "crop"),
        (np.zeros((8, 9), bool), "cut"),
    ):
        with pytest.raises(ValueError, match="bool mask"):
            remove_background(image, mask, mode, 8)


def test_the_confidence_is_the_dice_of_drawn_masks():
    """Expected Dice by its formula against the mean over masks drawn pixel by pixel."""
    rng = np.random.default_rng(0)
    p = (255 * scipy.ndimage.gaussian_filter(rng.uniform(size=(80, 80)), 2) ** 0.7).astype(np.uint8)
    p = cv2.normalize(p, None, 0, 255, cv2.NORM_MINMAX)  # type: ignore[call-overload]
    mask = p > 127
    drawn = rng.uniform(size=(200, 80, 80)) < p / 255
    dice = 2 * (drawn & mask).sum((1, 2)) / (drawn.sum((1, 2)) + mask.sum())
    assert check_mask(p).confidence == pytest.approx(dice.mean(), abs=0.003)


def test_what_a_person_should_look_at():
    def reasons(draw) -> str:
        p = np.zeros((100, 100), np.uint8)
        draw(p)
        return "; ".join(check_mask(p).reasons)

    def rectangle(*corners, value=255):
        return lambda p: [
            p.__setitem__((slice(t, b), slice(x, y)), value) for t, b, x, y in corners
        ]

    assert reasons(rectangle((20, 100, 30, 70))) == ""  # a hand whose forearm leaves the frame
    assert reasons(rectangle()) == "no hand found"
    assert reasons(rectangle((40, 50, 40, 50))) == "small: 1% of the image"
    assert "large" in reasons(rectangle((2, 98, 2, 98)))
    assert reasons(rectangle((10, 90, 10, 40), (10, 90, 60, 95))) == "2 separate parts"
    assert reasons(rectangle((10, 90, 10, 60), (10, 13, 90, 93))) == ""  # a speck
    assert "touches 3 sides" in reasons(rectangle((0, 100, 40, 60), (50, 60, 0, 50)))
    assert "uncertain" in reasons(rectangle((20, 90, 20, 70), value=150))

"""Mask files: which of their values is the hand, and which files cannot say."""

import cv2
import numpy as np
import pytest
from PIL import Image

from boneage_jax.data.files import UnreadableImage
from boneage_jax.data.mask_file import read_mask

HAND = np.zeros((48, 40), bool)
HAND[10:45, 12:30] = True
MARKER = np.zeros_like(HAND)
MARKER[2:8, 2:9] = True
BLURRED = cv2.GaussianBlur(HAND.astype(np.float32), (0, 0), 1.2)


def palette(labels: np.ndarray, colours: dict[int, tuple[int, int, int]]) -> Image.Image:
    image = Image.fromarray(labels.astype(np.uint8), "P")
    table = np.zeros((256, 3), np.uint8)
    for index, colour in colours.items():
        table[index] = colour
    image.putpalette(table.ravel().tolist())
    return image


def over(colour: tuple[int, ...]) -> np.ndarray:
    return (HAND[..., None] * np.array(colour)).astype(np.uint8)


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")
@pytest.mark.parametrize(
    "make",
    [
        lambda: Image.fromarray(HAND),
        lambda: HAND * np.uint8(1),
        lambda: HAND * np.uint8(15),
        lambda: HAND * np.uint8(255),
        lambda: HAND * np.uint16(1),
        lambda: HAND * np.uint16(65535),
        lambda: palette(HAND, {1: (128, 0, 0)}),
        lambda: palette(HAND * 7, {7: (255, 255, 255)}),
        lambda: over((0, 64, 0)),
        lambda: over((9, 9, 9)),
        lambda: over((200, 30, 90, 255)),
        lambda: np.dstack([over((255, 255, 255)), np.full(HAND.shape, 255, np.uint8)]),
        lambda: np.rint(BLURRED * 255).astype(np.uint8),
        lambda: np.rint(BLURRED * 65535).astype(np.uint16),
        lambda: np.where(np.rint(BLURRED * 3) % 3 > 0, 128, HAND * 255).astype(np.uint8),
    ],
)
def test_one_value_or_colour_beside_black_is_the_hand(tmp_path, make):
    image = make()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(tmp_path / "mask.png")
    mask = read_mask(tmp_path / "mask.png")
    assert mask.dtype == bool
    edge = (BLURRED > 0.05) & (BLURRED < 0.95)
    np.testing.assert_array_equal(mask[~edge], HAND[~edge])


@pytest.mark.parametrize(("value", "all_of_it"), [(0, False), (1, True), (255, True)])
def test_one_value_alone(tmp_path, value, all_of_it):
    Image.fromarray(np.full((9, 8), value, np.uint8)).save(tmp_path / "mask.png")
    assert (read_mask(tmp_path / "mask.png") == all_of_it).all()


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")
@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: HAND * np.uint8(1) + MARKER * np.uint8(2), "the values 0, 1, 2;"),
        (lambda: HAND * np.uint8(1) + MARKER * np.uint8(255), "the values 0, 1, 255;"),
        (lambda: HAND * np.uint8(127) + MARKER * np.uint8(255), "the values 0, 127, 255;"),
        (lambda: HAND * np.uint8(200) + np.uint8(3), "the values 3, 203;"),
        (lambda: np.full((9, 9), 60, np.uint8), "the values 60;"),
        (
            lambda: palette(HAND + 15 * MARKER, {1: (128, 0, 0), 15: (192, 128, 128)}),
            r"the colours \(0, 0, 0\), \(128, 0, 0\), \(192, 128, 128\);",
        ),
        (lambda: over((0, 64, 0)) + np.uint8(5), r"the colours \(5, 5, 5\), \(5, 69, 5\);"),
        (
            lambda: np.tile(np.linspace(0, 255, 90).astype(np.uint8), (90, 1)),  # a radiograph
            "the values 0, 2, .* and 84 more",
        ),
    ],
)
def test_several_values_or_colours_are_refused_by_name(tmp_path, make, named):
    image = make()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(tmp_path / "mask.png")
    with pytest.raises(UnreadableImage, match=rf"mask\.png: it holds {named}"):
        read_mask(tmp_path / "mask.png")


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")
def test_an_inverted_mask_is_refused(tmp_path):
    inverting = palette(HAND, {0: (255, 255, 255), 1: (0, 0, 0)})  # as ImageJ saves
    for image in (inverting, Image.fromarray(~HAND)):
        image.save(tmp_path / "mask.png")
        with pytest.raises(UnreadableImage, match=r"mask\.png: .* seems inverted"):
            read_mask(tmp_path / "mask.png")


def test_what_is_no_mask_is_refused(tmp_path):
    for name, content in (("a.png", b""), ("b.png", b"id,age"), ("c.png", b"\x89PNG\r\n\x1a\n")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UnreadableImage, match=name):
            read_mask(tmp_path / name)
    with pytest.raises(UnreadableImage, match="No such file"):
        read_mask(tmp_path / "d.png")

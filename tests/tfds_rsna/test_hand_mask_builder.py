"""The builder for hand masks: pairing, COCO codes, geometry, refusals."""

import json
import os
import unicodedata
from pathlib import Path

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from pycocotools.mask import decode, frPyObjects, merge

from boneage_jax.data.files import fit_square
from boneage_jax.errors import InputError
from tfds_rsna.hand_mask.coco import CocoImage, decode_counts, draw_segments, read_coco
from tfds_rsna.hand_mask.hand_mask_dataset_builder import Builder
from tfds_rsna.hand_mask.pairs import find_pairs, fit_mask, image_id

SHAPE = (60, 80)


def _disc(index: int, shape=SHAPE) -> np.ndarray:
    y, x = np.mgrid[: shape[0], : shape[1]]
    return (y - 30) ** 2 + (x - 30 - index) ** 2 < (12 + index) ** 2


def _write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


def _png_folder(root: Path, count: int = 10, high: int = 255) -> Path:
    for i in range(count):
        _write(root / "deep" / "images" / f"{i}.png", np.where(_disc(i), 200, 20).astype(np.uint8))
        _write(root / "hand_masks" / f"{i}.png", (_disc(i) * high).astype(np.uint8))
    _write(root / "deep" / "images" / "unlabelled.png", np.zeros(SHAPE, np.uint8))
    return root


def _coco_folder(root: Path, annotations: list[dict], names=("images/0.png",)) -> Path:
    for name in names:
        _write(root / name, np.where(_disc(0), 200, 20).astype(np.uint8))
    height, width = SHAPE
    images = [
        {"id": i, "file_name": name, "height": height, "width": width}
        for i, name in enumerate(names)
    ]
    content = {"images": images, "annotations": annotations, "categories": []}
    (root / "result.json").write_text(json.dumps(content))
    return root


def _annotation(segmentation, number=7, image=0, category=1):
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "segmentation": segmentation,
    }


def _prepare(root: Path, data_dir: Path, config: str = "64", **options):
    name = f"hand_mask/{config}"
    builder = tfds.builder(name, data_dir=data_dir, raw_dir=root, **options)
    builder.download_and_prepare()
    return {name: list(builder.as_data_source(split=name)) for name in builder.info.splits}, builder


@pytest.mark.parametrize("high", [1, 255])
def test_png_masks_are_paired_and_fitted_like_their_images(tmp_path, high):
    parts, builder = _prepare(_png_folder(tmp_path / "raw", high=high), tmp_path / "data")
    assert {name: len(part) for name, part in parts.items()} == {"train": 8, "validation": 2}
    records = {r["id"].decode(): r for part in parts.values() for r in part}
    assert sorted(records) == [str(i) for i in range(10)]
    for i in range(10):
        record = records[str(i)]
        assert (record["height"], record["width"]) == SHAPE
        assert record["mask"].shape == record["image"].shape == (64, 64, 1)
        # The image is bright exactly where the hand is, so it carries the geometry of the mask.
        np.testing.assert_array_equal(record["mask"], (record["image"] > 110).astype(np.uint8))
    assert set(builder.get_metadata().tags) <= set(tfds.core.dataset_metadata.valid_tags())
    assert set(Builder.builder_configs) >= {"128", "256", "384", "512", "original"}


def test_original_keeps_the_mask(tmp_path):
    parts, _ = _prepare(_png_folder(tmp_path / "raw", 3), tmp_path, "original", fractions="train=1")
    for record in parts["train"]:
        np.testing.assert_array_equal(record["mask"][..., 0], _disc(int(record["id"])))


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("1.2.826.0.1.3680043.9.7433.1000", "1.2.826.0.1.3680043.9.7433.1000.png"),
        (unicodedata.normalize("NFD", "Händ.PNG"), "Händ.png"),
        (os.fsdecode("Händ.png".encode("latin-1")), os.fsdecode("Händ.png".encode("latin-1"))),
    ],
)
def test_masks_and_images_are_matched_in_one_form_of_names(tmp_path, image, mask):
    content = cv2.imencode(".png", _disc(0) * np.uint8(200))[1].tobytes()
    for path in (tmp_path / "images" / image, tmp_path / "images" / "other.png"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / mask).write_bytes(content)
    pairs, lines = find_pairs(tmp_path)
    assert [pair.image.name for pair in pairs] == [image]
    assert pairs[0].id.encode()  # TFDS hashes it as UTF-8
    assert lines[-1] == "left out 1: 1 images without a mask"


def test_a_coco_file_names_images_in_another_form(tmp_path):
    composed, mac = "sub/Händ.png", unicodedata.normalize("NFD", "sub/Händ.png")
    runs = {"size": list(SHAPE), "counts": [0, 60 * 80]}
    root = _coco_folder(tmp_path, [_annotation(runs)], (composed,))
    (root / composed).rename(root / mac)
    _write(root / "other" / "Händ.png", np.zeros(SHAPE, np.uint8))
    assert [pair.image for pair in find_pairs(root)[0]] == [root / mac]


@pytest.mark.parametrize("shape", [(60, 80), (81, 64), (201, 67), (33, 50), (40, 40), (97, 90)])
def test_fit_mask_has_the_geometry_of_fit_square(shape):
    """On a mask that is empty at its border both pad with 0, and must agree."""
    mask = np.zeros(shape, bool)
    mask[5:-9, 7:-4] = np.random.default_rng(0).random((shape[0] - 14, shape[1] - 11)) > 0.4
    expected = fit_square(mask.astype(np.uint8) * 255, 64) > 127
    assert np.mean(fit_mask(mask, 64) == expected) > 0.99


def test_fit_mask_never_pads_with_hand():
    fitted = fit_mask(np.ones((20, 40), bool), 64)
    assert fitted[16:48].all() and not fitted[:16].any() and not fitted[48:].any()


# Masks as pycocotools 2.0.11 compresses them.
_HALF = np.repeat([False, True, False], [3_000_000, 2_999_999, 1])
CODES = {
    "1": np.zeros((1, 1), bool),
    "01": np.ones((1, 1), bool),
    "3040M": np.zeros((2, 4), bool),  # runs of 3, 0, 4, 0 and 1
    "012000000000000000000000O": np.add.outer(np.arange(7), np.arange(5)) % 3 == 0,
    "^T19a14M2N2N2N2O0O2O0000000000000001N101N2N2N2N3L`V2": _disc(0),
    "Pfak2oeak21": _HALF.reshape((3000, 2000), order="F"),
}


@pytest.mark.parametrize("text", CODES)
def test_run_lengths_are_those_of_pycocotools(text):
    mask = CODES[text]
    for counts in (text, decode_counts(text)):
        segment = {"size": list(mask.shape), "counts": counts}
        image = CocoImage("x", *mask.shape, (("here", segment),))
        np.testing.assert_array_equal(draw_segments(image), mask)


@pytest.mark.parametrize("corners", [3, 12, 60])
def test_polygons_have_the_area_and_the_place_of_their_corners(corners):
    rng = np.random.default_rng(corners)
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    radius = rng.uniform(60, 120, corners)
    x, y = 128 + radius * np.cos(angle), 125 + radius * np.sin(angle)
    cross = x * np.roll(y, -1) - np.roll(x, -1) * y  # the shoelace formula
    flat = np.stack([x, y], axis=1).ravel().tolist()
    mask = draw_segments(CocoImage("x", 250, 256, (("here", [flat]),)))
    outline = np.hypot(x - np.roll(x, -1), y - np.roll(y, -1)).sum()
    assert abs(mask.sum() - cross.sum() / 2) < 0.2 * outline
    rows, columns = np.nonzero(mask)
    for pixels, one in ((columns, x), (rows, y)):
        centre = ((one + np.roll(one, -1)) * cross).sum() / (3 * cross.sum())
        assert abs(pixels.mean() + 0.5 - centre) < 0.3


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of pycocotools
@pytest.mark.parametrize(
    "polygon",
    [
        [20, 20, 60, 20, 60, 59, 20, 59],
        [20, 20, 60, 20, 60, 63, 20, 63],  # below the border
        [-4, 20, 84, 10, 70, 62.5, 20, -3],  # over all four
        [70, 10, 84, 30, 75, 50],
    ],
)
def test_polygons_over_the_border_flat_or_nested_are_those_of_pycocotools(polygon):
    truth = merge(frPyObjects([polygon], *SHAPE))
    for segmentation in (polygon, [polygon]):
        mask = draw_segments(CocoImage("x", *SHAPE, (("here", segmentation),)))
        np.testing.assert_array_equal(mask, decode(truth).astype(bool))


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of pycocotools
def test_several_objects_become_one_mask():
    square, triangle = [5, 5, 25, 5, 25, 25, 5, 25], [[40, 40, 60, 40, 60, 58]]
    runs = {"size": list(SHAPE), "counts": [70, 5, SHAPE[0] * SHAPE[1] - 75]}
    image = CocoImage("x", *SHAPE, (("a", square), ("b", triangle), ("c", runs)))
    parts = [merge(frPyObjects([square], *SHAPE)), merge(frPyObjects(triangle, *SHAPE))]
    truth = decode(merge([*parts, frPyObjects(runs, *SHAPE)]))
    np.testing.assert_array_equal(draw_segments(image), truth.astype(bool))


def test_polygon_pixels_by_hand():
    square = [10, 20, 14, 20, 14, 23, 10, 23]
    other = [0, 0, 80, 0, 80, 1, 0, 1]
    mask = draw_segments(CocoImage("x", *SHAPE, (("here", [square, other]),)))
    expected = np.zeros(SHAPE, bool)
    expected[20:23, 10:14] = expected[0] = True
    np.testing.assert_array_equal(mask, expected)


def test_label_studio_export(tmp_path):
    """Upload prefixes are dropped, whether the images on disk carry them or not."""
    names = ("images/0a1b2c3d-11.png", "images/99f0e1d2-12.png", "images/13.png")
    runs = {"size": list(SHAPE), "counts": [100, 50, SHAPE[0] * SHAPE[1] - 150]}
    annotations = [
        _annotation([[10, 10, 40, 10, 40, 40]], 1, 0),
        _annotation([[50, 50, 60, 50, 60, 55]], 2, 0),
        _annotation(runs, 3, 1),
    ]
    root = _coco_folder(tmp_path / "raw", annotations, names)
    (root / names[1]).rename(root / "images" / "12.png")
    parts, _ = _prepare(root, tmp_path / "data", "original", fractions="train=0.5,validation=0.5")
    masks = {r["id"]: r["mask"][..., 0] for part in parts.values() for r in part}
    assert sorted(masks) == [b"11", b"12"]
    assert masks[b"12"].sum() == 50
    assert abs(int(masks[b"11"].sum()) - (450 + 25)) < 30  # the areas of the triangles


def test_upload_prefix():
    assert image_id("0a1b2c3d-1377") == "1377"
    assert image_id("1377") == "1377"
    assert image_id("20240131-2") == "20240131-2"  # a date
    assert image_id("0a1b2c3d-") == "0a1b2c3d-"


def test_one_complete_folder_wins_over_partial_copies(tmp_path):
    root = _png_folder(tmp_path, 3)
    _write(root / "thumbnails" / "1.png", np.zeros((5, 5), np.uint8))
    pairs, lines = find_pairs(root)
    assert {pair.image.parent.name for pair in pairs} == {"images"}
    assert lines[-1] == "left out 2: 1 images without a mask, 1 copies of images"
    _write(root / "thumbnails" / "0.png", np.zeros((5, 5), np.uint8))
    _write(root / "thumbnails" / "2.png", np.zeros((5, 5), np.uint8))
    with pytest.raises(InputError, match="have the same id"):
        find_pairs(root)
    pairs, _ = find_pairs(root, images="deep/images")
    assert len(pairs) == 3


def test_bad_masks_are_refused(tmp_path):
    cases = {
        "shows no hand": np.zeros(SHAPE, np.uint8),
        "covers the whole image": np.full(SHAPE, 255, np.uint8),
        r": it holds the values 0, 1, 2; a mask holds 0 and one other": np.arange(4800)
        .reshape(SHAPE)
        .astype(np.uint8)
        % 3,
        r"is 40x30 pixels, its image .* 80x60": np.full((30, 40), 255, np.uint8),
    }
    for number, (message, mask) in enumerate(cases.items()):
        root = _png_folder(tmp_path / f"raw{number}", 2)
        _write(root / "hand_masks" / "1.png", mask)
        with pytest.raises(InputError, match=f"1.png ?{message}"):
            _prepare(root, tmp_path / f"data{number}", fractions="train=1")


def test_a_mask_too_small_for_the_size_is_refused(tmp_path):
    _write(tmp_path / "masks" / "1.png", np.pad(np.full((1, 1), 255, np.uint8), 150))
    _write(tmp_path / "1.png", np.zeros((301, 301), np.uint8))
    with pytest.raises(InputError, match="vanishes at 64 pixels"):
        _prepare(tmp_path, tmp_path / "data", fractions={"train": 1.0})


def test_a_speck_is_no_hand(tmp_path):
    corners = [0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0]  # fractions of the side in place of pixels
    root = _coco_folder(tmp_path / "raw", [_annotation([corners])])
    with pytest.raises(InputError, match=r"covers 0\.02% of its image"):
        _prepare(root, tmp_path / "data", config="512", fractions={"train": 1.0})


def test_bad_folders_are_refused(tmp_path):
    root = _png_folder(tmp_path / "raw", 2)
    _write(root / "hand_masks" / "99.png", _disc(0).astype(np.uint8))
    with pytest.raises(InputError, match=r"1 of 3 masks have no image .*99\.png"):
        find_pairs(root)
    _write(root / "hand_masks" / "0a1b2c3d-1.png", _disc(0).astype(np.uint8))
    with pytest.raises(InputError, match="id '1' has two masks"):
        find_pairs(root)
    (root / "hand_masks" / "0a1b2c3d-1.png").unlink()
    with pytest.raises(InputError, match="not both"):
        find_pairs(root, masks="a", coco="b")
    with pytest.raises(InputError, match="leaves raw_dir"):
        find_pairs(root, images="../raw")
    with pytest.raises(InputError, match="does not exist"):
        find_pairs(root, masks="nothing")
    (root / "other_masks").mkdir()
    with pytest.raises(InputError, match="several mask folders"):
        find_pairs(root)
    with pytest.raises(InputError, match="holds no PNG mask"):
        find_pairs(root, masks="other_masks")
    with pytest.raises(InputError, match="not a folder"):
        find_pairs(root / "nowhere")
    with pytest.raises(InputError, match="not one JSON file"):
        find_pairs(root / "deep")
    with pytest.raises(InputError, match="needs --raw_dir"):
        Builder(config="64", data_dir=tmp_path).download_and_prepare()


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([], "empty segmentation"),
        ("text", "empty segmentation"),
        ([[1, 1, 5, 5, 5]], "5 coordinates, an odd number"),
        ([[1, 1, 5, 5]], "2 corners"),
        ([[1, 1, 5, 5, 99, 5]], r"corner at \(99, 5\), outside its 80x60"),
        ([[1, 1, 5, 5, 5, -7]], "outside"),
        ([1, 1, 5, 5, 5], "5 coordinates, an odd number"),
        ([[1, 1, 5, 5, 5, float("nan")]], "flat list"),
        ([[[1, 1], [5, 5], [9, 1]]], "flat list"),
        ([["a", 1, 2, 3, 4, 5]], "flat list"),
        ([[1, 1, 5, 5, 9, 1e300]], "outside"),
        ([[0, 0, 79, 59] * 20_000], "outline of 3,1"),
        ([[10**400, 1, 5, 5, 9, 1]], "flat list"),
        ({"size": [60, 80], "counts": "P" * 10_000}, "has no end"),
        ({"size": [60, 80], "counts": [2**70]}, "its image has 4800"),
        ({"size": [10, 10], "counts": [50, 50]}, r"size \[10, 10\], its image is \[60, 80\]"),
        ({"size": [60, 80], "counts": [50, 50]}, "100 pixels, its image has 4800"),
        ({"size": [60, 80], "counts": [-50, 4850]}, "whole numbers"),
        ({"size": [60, 80], "counts": [4800.0]}, "whole numbers"),
        ({"size": [60, 80], "counts": " "}, "does not occur"),
        ({"size": [60, 80], "counts": "o"}, "ends within a number"),
    ],
)
def test_bad_segmentations_name_file_and_annotation(tmp_path, segmentation, message):
    root = _coco_folder(tmp_path, [_annotation(segmentation)])
    pairs, _ = find_pairs(root)
    with pytest.raises(InputError, match=rf"result\.json annotation 7 .*{message}"):
        pairs[0].read_mask()


def test_bad_coco_files_are_refused(tmp_path):
    path = tmp_path / "x.json"
    triangle = [[1, 1, 9, 1, 9, 9]]
    image = {"id": 0, "file_name": "0.png", "height": 60, "width": 80}

    def content(images, annotations):
        return json.dumps({"images": images, "annotations": annotations})

    other = _annotation(triangle, category=2)
    for text, message in [
        ("{", "cannot read .* as JSON"),
        ("[" * 100_000, "cannot read .* as JSON"),
        ("[]", "no list 'images'"),
        (json.dumps({"images": []}), "no list 'annotations'"),
        (content([image, image], []), "image id 0 twice"),
        (content([image], [_annotation(triangle, image=5)]), "annotation 7 belongs to image 5"),
        (content([image], [{"id": 7, "image_id": 0}]), "annotation 7 has no 'segmentation'"),
        (content([image], [_annotation(triangle), other]), "annotations of 1, 2; choose one"),
        (content([image | {"width": 0}], [other]), "image 0 has width 0"),
        (content([image | {"width": 65535, "height": 65535}], [other]), "65535 x 65535 pixels"),
    ]:
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            read_coco(path)
    path.write_text(content([image], [_annotation(triangle), other]))
    assert len(read_coco(path, "2")[0][0].segments) == 1
    with pytest.raises(InputError, match="no annotation of category 'hand'"):
        read_coco(path, "hand")

"""`segment` and the report of a U-Net, by the commands a user types."""

import csv
import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from boneage_jax import segment
from boneage_jax.data.files import read_grey
from boneage_jax.errors import InputError
from boneage_jax.evaluation.evaluate_run import evaluate
from boneage_jax.inference.segmenter import load_segmenter
from tests.support.unet_run import call
from tfds_rsna.hand_phantom.render import make_phantom


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def _plain(index: int, size: int = 192):
    """A phantom that the network has not seen, with its mask."""
    phantom = make_phantom(index, size, "test")
    return phantom.image, phantom.mask > 0


def _turned(image: np.ndarray, degrees: float) -> np.ndarray:
    side = image.shape[0]
    matrix = cv2.getRotationMatrix2D(((side - 1) / 2, (side - 1) / 2), degrees, 0.8)
    fill = int(np.median(image[0]))
    return cv2.warpAffine(image, matrix, (side, side), borderValue=fill)


QUIRKS = {
    "plain": lambda image, mask: (image, mask),
    "inverted": lambda image, mask: (255 - image, mask),
    "dim": lambda image, mask: ((image * 0.25 + 10).astype(np.uint8), mask),
    "rotated": lambda image, mask: (
        _turned(image, 25.0),
        _turned(mask.astype(np.uint8) * 255, 25.0) > 127,
    ),
    "bordered": lambda image, mask: (
        np.pad(image, ((6, 14), (20, 9)), constant_values=255),
        np.pad(mask, ((6, 14), (20, 9))),
    ),
}


@pytest.mark.parametrize("quirk", QUIRKS)
def test_masks_of_radiographs_with_quirks(here, quirk):
    pairs = [QUIRKS[quirk](*_plain(index)) for index in range(16)]
    found = load_segmenter(here / "unet")([image for image, _ in pairs])
    dice = [_dice(one.mask, mask) for one, (_, mask) in zip(found, pairs, strict=True)]
    assert np.median(dice) > 0.75, dice  # without the fitting augmentation: 0.5 and less


def test_of_two_hands_one_is_kept_and_a_person_is_asked(here):
    image, mask = _plain(3)
    nothing = np.zeros_like(mask)
    both = np.hstack([image[:, ::-1], image])
    one = load_segmenter(here / "unet")([both])[0]
    dice = [
        _dice(one.mask, np.hstack(halves)) for halves in ((mask[:, ::-1], nothing), (nothing, mask))
    ]
    assert max(dice) > 0.75 and min(dice) < 0.05, dice
    assert any("separate parts" in reason for reason in one.check.reasons)


def test_segment_writes_each_mask_at_the_size_of_its_image(here, radiographs, masks):
    images = {path.stem: read_grey(path) for path in (radiographs / "images").iterdir()}
    written = {path.stem: read_grey(path) for path in masks.glob("*.png")}
    assert written.keys() == images.keys()
    segmenter = load_segmenter(here / "unet", batch_size=4)
    found = segmenter(list(images.values()))
    by_path = segmenter((radiographs / "images").iterdir())  # in the same order
    assert [one.check for one in by_path] == [one.check for one in found]
    with pytest.raises(InputError, match="images is None"):
        segmenter(None)
    for (stem, image), one in zip(images.items(), found, strict=True):
        assert written[stem].shape == image.shape
        assert set(np.unique(written[stem])) <= {0, 255}
        # Another batch size rounds otherwise: a few pixels at the outline.
        assert np.mean((written[stem] > 0) != one.mask) < 1e-3


def test_segment_lists_what_it_cannot_read_and_what_to_look_at(masks):
    with (masks / "review" / "masks.csv").open() as file:
        rows = {Path(row["file"]).name: row for row in csv.DictReader(file)}
    assert len(rows) == 27
    for name in ("text.png", "empty.png", "cut.png"):
        assert rows[name]["error"] and rows[name]["look"] == "True" and not rows[name]["mask"]
    good = [row for row in rows.values() if not row["error"]]
    assert len(good) == 24
    for row in good:
        mask = read_grey(Path(row["mask"])) > 0
        assert float(row["area"]) == pytest.approx(mask.mean(), abs=0.05)
        assert (row["look"] == "True") == bool(row["reasons"])
    summary = json.loads((masks / "review" / "summary.json").read_text())
    assert (summary["images"], summary["unreadable"]) == (24, 3)
    assert summary["to_look_at"] == sum(row["look"] == "True" for row in good)
    assert summary["train_flops"] > summary["flops_per_mask"] > 1e6
    sheet = cv2.imread(str(masks / "review" / "contact_sheet.png"))
    assert sheet.shape[1] == 1600 and sheet.std() > 20


def test_segment_keeps_parts_and_holes_where_asked(here):
    both = load_segmenter(here / "unet", largest=False, fill=False)
    p_hand = np.zeros((64, 64), np.uint8)
    p_hand[10:50, 10:40], p_hand[20:30, 20:30], p_hand[5:9, 50:60] = 255, 0, 255
    assert both.finish(p_hand, 64, 64).mask.sum() == 40 * 30 - 100 + 40
    assert load_segmenter(here / "unet").finish(p_hand, 64, 64).mask.sum() == 40 * 30


def test_segment_refuses_what_would_lose_masks(here, radiographs, tmp_path, monkeypatch, capfd):
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "hand00.tif").write_bytes(b"")
    (tmp_path / "copy" / "hand00.dcm").write_bytes(b"")
    images = radiographs / "images"
    before = {path.name: path.read_bytes() for path in images.iterdir()}
    (tmp_path / "link").symlink_to(images)
    for output, inputs, message in (
        (tmp_path / "out", (images, tmp_path / "copy" / "hand00.tif"), "segment their folders one"),
        (tmp_path / "out", (tmp_path / "copy",), "hand00.png; rename or remove one"),
        (images, (images,), "holds the radiographs themselves"),
        (tmp_path / "link", (images,), "holds the radiographs themselves"),
        (images / ".." / "images", (images,), "holds the radiographs themselves"),
        # A radiograph of another name may lie beside those that are read.
        (images, (images / "hand00.png",), "holds the radiographs themselves"),
        (tmp_path / "copy", (tmp_path / "copy" / "hand00.tif",), "holds the radiographs"),
        (tmp_path / "copy" / "hand00.tif", (images,), "is a file; name a folder"),
        ("", (images,), "must not be empty"),
    ):
        code = call(segment, f"--workdir={here / 'unet'}", f"--output={output}", *inputs)
        text = capfd.readouterr().err
        assert code != 0 and message in text and "Traceback" not in text
    assert {path.name: path.read_bytes() for path in images.iterdir()} == before


def test_odd_names_cost_one_mask_at_most(here, radiographs, tmp_path, capfd):
    odd, output = tmp_path / "odd", tmp_path / "out"
    odd.mkdir()
    whole = (radiographs / "images" / "hand00.png").read_bytes()
    names = [b"h\xffand.png", "Zürich é.png".encode(), b"taken.png", b"plain.png"]
    for name in names:
        (odd / os.fsdecode(name)).write_bytes(whole)
    (output / "taken.png").mkdir(parents=True)
    workdir = f"--workdir={here / 'unet'}"
    assert call(segment, workdir, f"--output={output}", odd) == 0
    written = {path.name for path in output.glob("*.png") if path.is_file()}
    assert written == {os.fsdecode(name) for name in names} - {"taken.png"}
    table = (output / "review" / "masks.csv").read_text(errors="surrogateescape")
    assert table.count("its mask cannot be written") == 1
    (line,) = [row for row in capfd.readouterr().err.splitlines() if row.startswith("left out")]
    assert "taken.png" in line and "its mask cannot be written" in line


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", '{"task": "hand_mask", "steps": "12"}'),
        ("config.json", '{"task": "hand_mask", "model": 3}'),
        ("facts.json", '{"image_size": null, "train_images": 1, "age_mean": 0, "age_std": 1}'),
        ("facts.json", '{"image_size": 0, "train_images": 1, "age_mean": 0, "age_std": 1}'),
    ],
)
def test_a_damaged_workdir_of_a_u_net(here, radiographs, tmp_path, monkeypatch, capfd, name, text):
    copy = tmp_path / "copy"
    shutil.copytree(here / "unet", copy)
    (copy / name).write_text(text)
    arguments = (f"--workdir={copy}", f"--output={tmp_path / 'out'}", radiographs / "images")
    assert call(segment, *arguments) != 0
    error = capfd.readouterr().err
    assert "error:" in error and "Traceback" not in error


def test_evaluation_of_a_u_net(here, capsys, monkeypatch):
    report = evaluate(here / "unet", "test", unlock_test=True)
    assert report["mask"]["per_image"]["f1"] > 0.85
    folder = here / "unet" / "evaluation" / "test"
    assert {path.name for path in (folder / "figures").iterdir()} >= {"masks.png", "dice.png"}
    with (folder / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    hit, extra, missed = (
        np.array([float(row[key]) for row in rows])
        for key in ("true_positive", "false_positive", "false_negative")
    )
    dice = 2 * hit / (2 * hit + extra + missed)
    assert report["mask"]["per_image"]["f1"] == pytest.approx(dice.mean(), rel=1e-6)

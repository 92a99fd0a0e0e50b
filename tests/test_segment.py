"""`segment` and what follows it, by the commands a user types, with a U-Net trained on phantoms."""

import csv
import json
import os
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import boneage_jax
from boneage_jax import evaluate, main, predict, segment
from boneage_jax.config import check_config
from boneage_jax.data.files import fit_square, read_grey
from boneage_jax.data.masks import remove_background
from boneage_jax.errors import InputError, door
from boneage_jax.predictor import Predictor
from boneage_jax.recipe import Facts
from boneage_jax.segmenter import load_segmenter
from boneage_jax.workdir import claim_workdir
from configs import cls
from tfds_rsna import prepare
from tfds_rsna.hand_phantom.render import make_phantom

ROOT = Path(__file__).parent.parent


def _call(monkeypatch, module, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["door", *map(str, arguments)])
    return door(module.main)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Data, compiled programs and a U-Net for all tests of this file."""
    folder = tmp_path_factory.mktemp("segment")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(folder / "data"))
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled"))
        patch.chdir(ROOT)
        code = _call(
            patch,
            main,
            "--config=configs/seg.py",
            f"--workdir={folder / 'unet'}",
            "--config.data.config=64-small",
            "--config.steps=160",
            "--config.batch_size=12",
            "--config.eval_batch_size=32",
            "--config.evaluate_every=10.0",
            "--config.augment.invert=0.4",
            "--config.augment.frame=0.3",
            "--config.augment.rotate=30.0",
        )
        assert code == 0
        yield folder


@pytest.fixture
def here(shared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(shared / "data"))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(shared / "compiled"))
    monkeypatch.chdir(ROOT)
    return shared


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
    assert np.median(dice) > 0.8, dice  # without the fitting augmentation: 0.5 and less


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


@pytest.fixture(scope="module")
def radiographs(tmp_path_factory):
    """24 phantoms as PNG files of several sizes, with a CSV of their ages."""
    folder = tmp_path_factory.mktemp("radiographs")
    (folder / "images").mkdir()
    lines = ["file,age,sex"]
    for index in range(24):
        phantom = make_phantom(index, 128 + 8 * (index % 3), "test")
        image = phantom.image[:, index % 4 :]
        cv2.imwrite(str(folder / "images" / f"hand{index:02d}.png"), image)
        lines.append(f"hand{index:02d}.png,{phantom.bone_age:.1f},{'FM'[phantom.male]}")
    (folder / "ages.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def masks(shared, radiographs, tmp_path_factory):
    """What `segment` writes for the radiographs and three files that cannot be read."""
    output, bad = tmp_path_factory.mktemp("masks"), tmp_path_factory.mktemp("bad")
    (bad / "text.png").write_text("no image")
    (bad / "empty.png").write_bytes(b"")
    whole = (radiographs / "images" / "hand00.png").read_bytes()
    (bad / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(shared / "compiled"))
        code = _call(
            patch,
            segment,
            f"--workdir={shared / 'unet'}",
            f"--output={output}",
            radiographs / "images",
            bad,
        )
    assert code == 0
    return output


def test_segment_writes_each_mask_at_the_size_of_its_image(here, radiographs, masks):
    images = {path.stem: read_grey(path) for path in (radiographs / "images").iterdir()}
    written = {path.stem: read_grey(path) for path in masks.glob("*.png")}
    assert written.keys() == images.keys()
    found = load_segmenter(here / "unet", batch_size=4)(list(images.values()))
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
    images = radiographs / "images"
    before = {path.name: path.read_bytes() for path in images.iterdir()}
    (tmp_path / "link").symlink_to(images)
    for output, inputs, message in (
        (tmp_path / "out", (images, tmp_path / "copy" / "hand00.tif"), "the same mask hand00.png"),
        (images, (images,), "holds the radiographs themselves"),
        (tmp_path / "link", (images,), "holds the radiographs themselves"),
        (images / ".." / "images", (images,), "holds the radiographs themselves"),
        (tmp_path / "copy" / "hand00.tif", (images,), "cannot be written"),
    ):
        code = _call(
            monkeypatch, segment, f"--workdir={here / 'unet'}", f"--output={output}", *inputs
        )
        text = capfd.readouterr().err
        assert code != 0 and message in text and "Traceback" not in text
    assert {path.name: path.read_bytes() for path in images.iterdir()} == before


def test_odd_names_cost_one_mask_at_most(here, radiographs, tmp_path, monkeypatch):
    odd, output = tmp_path / "odd", tmp_path / "out"
    odd.mkdir()
    whole = (radiographs / "images" / "hand00.png").read_bytes()
    names = [b"h\xffand.png", "Zürich é.png".encode(), b"taken.png", b"plain.png"]
    for name in names:
        (odd / os.fsdecode(name)).write_bytes(whole)
    (output / "taken.png").mkdir(parents=True)
    workdir = f"--workdir={here / 'unet'}"
    assert _call(monkeypatch, segment, workdir, f"--output={output}", odd) == 0
    written = {path.name for path in output.glob("*.png") if path.is_file()}
    assert written == {os.fsdecode(name) for name in names} - {"taken.png"}
    table = (output / "review" / "masks.csv").read_text(errors="surrogateescape")
    assert table.count("its mask cannot be written") == 1


@pytest.fixture(scope="module")
def prepared(shared, radiographs, masks, tmp_path_factory):
    """The radiographs without background, by the folder of masks and by the U-Net."""
    builders = {}
    for name, source in (("folder", masks), ("network", shared / "unet")):
        builders[name] = prepare.prepare(
            "radiograph_folder/96",
            raw_dir=radiographs,
            data_dir=tmp_path_factory.mktemp(name),
            masks=source,
        )
    return builders


def test_the_door_of_prepare_takes_masks(radiographs, masks, prepared, tmp_path, monkeypatch):
    raw = (f"--raw_dir={radiographs}", f"--data_dir={tmp_path}")
    arguments = ("radiograph_folder/96", *raw, f"--masks={masks}", "--mask_mode=multiply")
    assert _call(monkeypatch, prepare, *arguments) == 0
    assert [p.name for p in (tmp_path / "radiograph_folder").iterdir() if p.name[0] != "."] == [
        "96-multiply"
    ]


def _records(builder) -> dict[str, np.ndarray]:
    return {
        record["id"].decode(): record["image"][..., 0]
        for split in builder.info.splits
        for record in builder.as_data_source(split=split)
    }


def test_prepare_takes_the_background_out(prepared, radiographs, masks):
    assert prepared["folder"].builder_config.name == "96-crop"
    records = _records(prepared["folder"])
    assert len(records) == 24
    for stem, square in records.items():
        image = read_grey(radiographs / "images" / f"{stem}.png")
        mask = read_grey(masks / f"{stem}.png") > 0
        np.testing.assert_array_equal(square, remove_background(image, mask, "crop", 96))


def test_the_network_and_its_masks_prepare_the_same(prepared):
    by_masks, by_network = _records(prepared["folder"]), _records(prepared["network"])
    assert by_masks.keys() == by_network.keys()
    difference = [np.abs(by_masks[k].astype(int) - by_network[k]).mean() for k in by_masks]
    assert np.median(difference) < 1.0  # outlines differ by a pixel where rounding does
    notes = [
        json.loads(Path(builder.data_path, "background", "background.json").read_text())
        for builder in prepared.values()
    ]
    assert notes[0]["cost"] == notes[1]["cost"] and notes[0]["cost"]["images"] == 24


def test_what_prepare_says_of_unfit_masks(here, radiographs, masks, tmp_path):
    def refused(message, **options):
        with pytest.raises(InputError, match=message) as caught:
            prepare.prepare(
                **{"name": "radiograph_folder/96", "raw_dir": radiographs, "data_dir": tmp_path}
                | options
            )
        assert "\n" not in str(caught.value)

    refused("no such folder", masks=tmp_path / "nowhere")
    refused("neither PNG masks nor a U-Net", masks=tmp_path)
    refused("needs --raw_dir|must be prepared", raw_dir="", masks=masks)
    refused("takes no masks", name="hand_phantom/64-small", raw_dir="", masks=masks)
    refused("keeps each image's own size", name="radiograph_folder/original", masks=masks)
    refused("mask_mode=multiply needs masks", mask_mode="multiply")
    refused("disagree", name="radiograph_folder/96-crop", masks=masks, mask_mode="multiply")
    refused("give --masks=DIR", name="radiograph_folder/96-crop")
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(masks.glob("*.png"))[1:]:
        (few / path.name).write_bytes(path.read_bytes())
    cv2.imwrite(str(few / "hand05.png"), np.zeros((5, 5), np.uint8))
    refused("hand00.png: there is no such mask.*hand05.png is 5x5", masks=few)


@pytest.fixture(scope="module")
def aged(shared, radiographs, tmp_path_factory):
    """An age network, hardly trained, on radiographs without background."""
    workdir = tmp_path_factory.mktemp("age") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(shared / "data"))
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(shared / "compiled"))
        patch.chdir(ROOT)
        code = _call(
            patch,
            main,
            "--config=configs/cls.py",
            f"--workdir={workdir}",
            "--config.data.name=radiograph_folder",
            "--config.data.config=64",
            f"--config.data.raw_dir={radiographs}",
            f"--config.data.masks={shared / 'unet'}",
            "--config.model.name=efficientnet_lite0",
            "--config.batch_size=4",
            "--config.eval_batch_size=4",
            "--config.steps=3",
        )
    assert code == 0
    return workdir


def test_the_cost_of_the_masks_is_in_the_report(here, aged):
    report = json.loads((aged / "report.json").read_text())
    unet = json.loads((here / "unet" / "report.json").read_text())["compute"]
    assert report["dataset"]["config"] == "64-crop"
    assert report["compute"]["mask_flops"] == pytest.approx(
        unet["train_flops"] + 24 * unet["flops_per_prediction"], rel=0.01
    )


def test_predict_does_to_new_radiographs_what_was_done_to_those_of_training(
    here, aged, radiographs, masks, tmp_path, monkeypatch
):
    """Even where the U-Net's own workdir and the prepared data are gone."""
    seen: list[np.ndarray] = []
    read = Predictor.read

    def spy(self, squares, male):
        seen.extend(squares)
        return read(self, squares, male)

    monkeypatch.setattr(Predictor, "read", spy)
    files = sorted((radiographs / "images").iterdir())
    found = load_segmenter(here / "unet", batch_size=1)([read_grey(path) for path in files])
    ages = []
    for extra in ((), (f"--masks={masks}",)):
        seen.clear()
        output = tmp_path / "ages.csv"
        arguments = (f"--workdir={aged}", f"--output={output}", *extra, radiographs / "images")
        assert _call(monkeypatch, predict, *arguments) == 0
        with output.open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 24 and not any(row["error"] for row in rows)
        ages.append([float(row["bone_age_months"]) for row in rows])
        for path, one, square in zip(files, found, seen, strict=True):
            mask = read_grey(masks / f"{path.stem}.png") > 0 if extra else one.mask
            want = remove_background(read_grey(path), mask, "crop", 64)
            assert np.abs(want.astype(int) - square).mean() < 1.0
            assert not np.array_equal(square, fit_square(read_grey(path), 64))

    images, stems = [read_grey(path) for path in files], [path.stem for path in files]
    by_network = boneage_jax.load_predictor(aged)(images)
    np.testing.assert_allclose(by_network["bone_age_months"], ages[0], rtol=1e-3)
    by_masks = boneage_jax.load_predictor(aged, masks=str(masks))(images, stems=stems)
    np.testing.assert_allclose(by_masks["bone_age_months"], ages[1], rtol=1e-3)


def test_a_network_never_reads_images_of_another_kind_than_in_training(
    aged, radiographs, tmp_path, monkeypatch, capfd
):
    copy = tmp_path / "copy"
    shutil.copytree(aged, copy)
    shutil.rmtree(copy / "background")
    arguments = (f"--output={tmp_path / 'x.csv'}", radiographs / "images")
    assert _call(monkeypatch, predict, f"--workdir={copy}", *arguments) != 0
    text = capfd.readouterr().err
    assert "is missing, but the network was trained with crop" in text
    assert "Traceback" not in text
    # And the other way round: what an earlier, failed start left behind.
    facts = json.loads((copy / "facts.json").read_text()) | {"background": ""}
    (copy / "facts.json").write_text(json.dumps(facts))
    shutil.copytree(aged / "background", copy / "background")
    assert _call(monkeypatch, predict, f"--workdir={copy}", *arguments) != 0
    assert "says crop, but the network was trained with whole" in capfd.readouterr().err


def test_a_workdir_that_holds_no_checkpoint_is_claimed_anew(aged, tmp_path):
    folder, facts = tmp_path / "run", Facts(64, 24, 100.0, 40.0)
    config = check_config(cls.get_config())
    claim_workdir(folder, config, facts, aged / "background")
    assert (folder / "background" / "unet" / "checkpoints").is_dir()
    claim_workdir(folder, config, facts, None)
    assert not (folder / "background").exists()
    (folder / "background").touch()
    claim_workdir(folder, config, facts, aged / "background")
    assert (folder / "background" / "background.json").exists()


def test_reports_of_a_u_net_do_not_make_its_data_stale(prepared, radiographs, here, capfd):
    data_dir = Path(prepared["network"].data_path).parents[2]
    (here / "unet" / "evaluation" / "other").mkdir(parents=True)
    (here / "unet" / "evaluation" / "other" / "report.json").write_text("{}")
    options = {"raw_dir": radiographs, "data_dir": data_dir}
    prepare.prepare("radiograph_folder/96", masks=here / "unet", **options)
    assert "is prepared in" in capfd.readouterr().err
    (here / "unet").rename(here / "moved")
    try:
        prepare.prepare("radiograph_folder/96", masks=here / "unet", **options)
        assert "is gone; radiograph_folder/96-crop keeps" in capfd.readouterr().err
    finally:
        (here / "moved").rename(here / "unet")


def test_data_that_does_not_fit_the_task(here, radiographs, tmp_path, monkeypatch, capfd):
    workdir = f"--workdir={tmp_path / 'run'}"
    arguments = (
        "--config=configs/seg.py",
        "--config.data.name=radiograph_folder",
        "--config.data.config=64",
        f"--config.data.raw_dir={radiographs}",
    )
    assert _call(monkeypatch, main, *arguments, workdir) != 0
    text = capfd.readouterr().err
    assert "config.task=hand_mask needs mask; radiograph_folder has bone_age" in text
    assert "Traceback" not in text and not (tmp_path / "run").exists()


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
    assert _call(monkeypatch, segment, *arguments) != 0
    error = capfd.readouterr().err
    assert "error:" in error and "Traceback" not in error


def test_evaluation_of_a_u_net(here, capsys, monkeypatch):
    report = evaluate.evaluate(here / "unet", "test", unlock_test=True)
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


def test_a_run_of_one_task_is_refused_by_the_doors_of_the_other(
    here, aged, radiographs, tmp_path, monkeypatch, capfd
):
    for module, workdir, output in (
        (segment, aged, tmp_path / "out"),
        (predict, here / "unet", tmp_path / "out.csv"),
    ):
        arguments = (f"--workdir={workdir}", f"--output={output}", radiographs / "images")
        assert _call(monkeypatch, module, *arguments) != 0
        text = capfd.readouterr().err
        assert "holds a run of task" in text and "Traceback" not in text


def test_pretraining_runs_first_and_once(here, tmp_path, monkeypatch, capfd):
    recipe = (
        "--config=configs/seg.py",
        "--config.data.config=64-small",
        "--config.batch_size=12",
        "--config.eval_batch_size=32",
        "--config.evaluate_every=10.0",
        "--config.steps=2",
        "--config.pretrain.data=hand_phantom/64-small",
        "--config.pretrain.steps=3",
        f"--workdir={tmp_path / 'run'}",
    )
    assert _call(monkeypatch, main, *recipe) == 0
    first, run = (
        json.loads((folder / "report.json").read_text())
        for folder in (tmp_path / "run" / "pretrain", tmp_path / "run")
    )
    assert first["curve"][-1]["step"] == 3 and run["curve"][-1]["step"] == 2
    assert run["compute"]["train_flops"] * 3 == first["compute"]["train_flops"] * 5
    # Without its own checkpoints the run begins again, but not its pre-training.
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "report.json").unlink()
    before = (tmp_path / "run" / "pretrain" / "report.json").stat().st_mtime_ns
    capfd.readouterr()
    assert _call(monkeypatch, main, *recipe) == 0
    assert "nothing is left to do" in capfd.readouterr().err
    assert (tmp_path / "run" / "pretrain" / "report.json").stat().st_mtime_ns == before
    again = json.loads((tmp_path / "run" / "report.json").read_text())
    assert again["compute"]["train_flops"] == run["compute"]["train_flops"]
    assert again["mask"] == run["mask"]


def test_pretraining_hands_over_the_network_and_its_cost(here, tmp_path, monkeypatch, capfd):
    recipe = (
        "--config=configs/seg.py",
        "--config.data.config=64-small",
        "--config.batch_size=12",
        "--config.eval_batch_size=32",
        "--config.evaluate_every=10.0",
        "--config.augment.invert=0.4",
        "--config.steps=1",
        "--config.optimizer.learning_rate=1e-9",
        "--config.optimizer.weight_decay=0.0",
    )
    assert (
        _call(
            monkeypatch,
            main,
            *recipe,
            f"--config.init_from={here / 'unet'}",
            f"--workdir={tmp_path / 'on'}",
        )
        == 0
    )
    before = json.loads((here / "unet" / "report.json").read_text())
    after = json.loads((tmp_path / "on" / "report.json").read_text())
    # At a learning rate of nothing only the statistics move, by one batch.
    assert after["mask"]["pooled"]["f1"] == pytest.approx(before["mask"]["pooled"]["f1"], abs=0.03)
    spent = before["compute"]["train_flops"]
    assert after["compute"]["train_flops"] == pytest.approx(spent * 161 / 160, rel=1e-6)
    assert after["curve"][-1]["flops"] == after["compute"]["train_flops"]
    for wrong, message in (
        (("--config.init_from=nowhere",), "holds no run"),
        (
            (
                f"--config.init_from={here / 'unet'}",
                "--config.model.bn_momentum=0.5",
                "--config.model.name=unet_wide",
            ),
            "holds another network",
        ),
        (("--config.pretrain.steps=5",), "go together"),
    ):
        assert _call(monkeypatch, main, *recipe, *wrong, f"--workdir={tmp_path / 'x'}") != 0
        text = capfd.readouterr().err
        assert message in text and "Traceback" not in text

"""Radiographs without background, from `prepare` to `predict`, by the commands a user types."""

import csv
import json
import shutil
import unicodedata
from pathlib import Path

import cv2
import numpy as np
import pytest

import boneage_jax
import tests.support.tiny_backbone  # noqa: F401  (registers the network)
from boneage_jax import main, predict, segment
from boneage_jax.config import check_config
from boneage_jax.data.files import fit_square, read_grey
from boneage_jax.data.info import DataInfo
from boneage_jax.data.masks import remove_background
from boneage_jax.errors import InputError
from boneage_jax.inference.background_removal import Background
from boneage_jax.inference.segmenter import load_segmenter
from boneage_jax.storage.workdir import claim_workdir
from configs import cls
from tests.support.unet_run import call
from tfds_rsna import prepare

ROOT = Path(__file__).parents[2]


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
    assert call(prepare, *arguments) == 0
    (source,) = (tmp_path / "sources").glob("radiographs*")
    assert [p.name for p in (source / "radiograph_folder").iterdir() if p.name[0] != "."] == [
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


def test_masks_are_found_in_one_form_of_names(tmp_path):
    uid, mac = "1.2.826.0.1.3680043.9.7433.1000", unicodedata.normalize("NFD", "Händ")
    for name in (f"{uid}.png", f"{mac}.PNG"):
        mask = cv2.imencode(".png", np.full((8, 8), 255, np.uint8))[1]
        (tmp_path / name).write_bytes(mask.tobytes())
    background = Background(tmp_path, "multiply")
    image = np.full((8, 8), 9, np.uint8)
    for stem in (uid, mac, "Händ"):
        np.testing.assert_array_equal(background(image, stem, 8), image)
    with pytest.raises(InputError, match=r"1\.2\.png: no such mask"):
        background(image, "1.2", 8)
    (tmp_path / "Händ.png").write_bytes(b"")
    with pytest.raises(InputError, match="are masks of one image; remove one"):
        Background(tmp_path, "multiply")


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
    refused("hand00.png: no such mask.*hand05.png is 5x5", masks=few)


@pytest.fixture(scope="module")
def aged(shared, radiographs, tmp_path_factory):
    """An age network, hardly trained, on radiographs without background."""
    workdir = tmp_path_factory.mktemp("age") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(shared / "data"))
        patch.chdir(ROOT)
        code = call(
            main,
            "--config=configs/cls.py",
            f"--workdir={workdir}",
            "--config.data.name=radiograph_folder",
            "--config.data.config=64",
            f"--config.data.raw_dir={radiographs}",
            f"--config.data.masks={shared / 'unet'}",
            "--config.model.name=tiny",
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
    here, aged, radiographs, masks, tmp_path
):
    """Even where the U-Net's own workdir and the prepared data are gone."""
    files = sorted((radiographs / "images").iterdir())
    images, stems = [read_grey(path) for path in files], [path.stem for path in files]
    found = load_segmenter(here / "unet", batch_size=1)(images)
    for extra in ("", str(masks)):
        predictor = boneage_jax.load_predictor(aged, masks=extra)
        squares = [predictor.fit(image, stem) for image, stem in zip(images, stems, strict=True)]
        for image, stem, one, square in zip(images, stems, found, squares, strict=True):
            mask = read_grey(masks / f"{stem}.png") > 0 if extra else one.mask
            want = remove_background(image, mask, "crop", 64)
            assert np.abs(want.astype(int) - square).mean() < 1.0
            assert not np.array_equal(square, fit_square(image, 64))
        output = tmp_path / "ages.csv"
        given = (f"--masks={extra}",) if extra else ()
        arguments = (f"--workdir={aged}", f"--output={output}", *given, radiographs / "images")
        assert call(predict, *arguments) == 0
        with output.open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 24 and not any(row["error"] for row in rows)
        ages = [float(row["bone_age_months"]) for row in rows]
        np.testing.assert_allclose(predictor.read(squares)["bone_age_months"], ages, rtol=1e-3)
        of_images = predictor(images, stems=stems)["bone_age_months"]
        np.testing.assert_allclose(of_images, ages, rtol=1e-3)


def test_a_network_never_reads_images_of_another_kind_than_in_training(
    aged, radiographs, tmp_path, monkeypatch, capfd
):
    copy = tmp_path / "copy"
    shutil.copytree(aged, copy)
    shutil.rmtree(copy / "background")
    arguments = (f"--output={tmp_path / 'x.csv'}", radiographs / "images")
    assert call(predict, f"--workdir={copy}", *arguments) != 0
    text = capfd.readouterr().err
    assert "is missing, but the network was trained with crop" in text
    assert "Traceback" not in text
    # And the other way round: what an earlier, failed start left behind.
    info = json.loads((copy / "facts.json").read_text()) | {"background": ""}
    (copy / "facts.json").write_text(json.dumps(info))
    shutil.copytree(aged / "background", copy / "background")
    assert call(predict, f"--workdir={copy}", *arguments) != 0
    assert (
        "background='', but the checkpoint of step 3 was trained with 'crop'"
        in capfd.readouterr().err
    )


def test_a_workdir_that_holds_no_checkpoint_is_claimed_anew(aged, tmp_path):
    folder, info = tmp_path / "run", DataInfo(64, 24, 100.0, 40.0)
    config = check_config(cls.get_config())
    claim_workdir(folder, config, info, aged / "background")
    assert (folder / "background" / "unet" / "checkpoints").is_dir()
    claim_workdir(folder, config, info, None)
    assert not (folder / "background").exists()
    (folder / "background").touch()
    claim_workdir(folder, config, info, aged / "background")
    assert (folder / "background" / "background.json").exists()
    (folder / "checkpoints" / "10").mkdir(parents=True)
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"checkpoints without config\.json"):
        claim_workdir(folder, config, info, aged / "background")


def test_reports_of_a_u_net_do_not_make_its_data_stale(prepared, radiographs, here, capfd):
    data_dir = Path(prepared["network"].data_path).parents[4]
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
    assert call(main, *arguments, workdir) != 0
    text = capfd.readouterr().err
    assert "config.task=hand_mask needs mask; radiograph_folder has bone_age" in text
    assert "Traceback" not in text and not (tmp_path / "run").exists()


def test_a_run_of_one_task_is_refused_by_the_doors_of_the_other(
    here, aged, radiographs, tmp_path, monkeypatch, capfd
):
    for module, workdir, output in (
        (segment, aged, tmp_path / "out"),
        (predict, here / "unet", tmp_path / "out.csv"),
    ):
        arguments = (f"--workdir={workdir}", f"--output={output}", radiographs / "images")
        assert call(module, *arguments) != 0
        text = capfd.readouterr().err
        assert "holds a run of task" in text and "Traceback" not in text

"""The predictor as a library function and as a command: what it takes, and what it says."""

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest

import boneage_jax
import tests.support.tiny_backbone  # noqa: F401  (registers the network)
from boneage_jax import predict
from boneage_jax.data.notes import FLAT, SMALL
from boneage_jax.errors import InputError
from boneage_jax.inference.calibration import Calibration
from boneage_jax.inference.load_trained import load_members
from boneage_jax.inference.predict_files import check_arguments, describe, write_predictions
from boneage_jax.inference.predictor import Predictor
from tests.support.unet_run import call
from tfds_rsna.hand_phantom.render import make_phantom

WORKDIR = Path(__file__).parent / "old_workdirs" / "bone_age"
IMAGES = [make_phantom(index, 200, "test").image for index in range(3)]


@pytest.fixture(scope="module")
def predictor():
    """One whose network has the sex as an input."""
    return boneage_jax.load_predictor(WORKDIR, batch_size=2)


@pytest.fixture(scope="module")
def without_sex():
    """The members of an ensemble whose networks do not have it."""
    return load_members(WORKDIR.parent / "ensemble", eval_batch_size=4)


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / f"{name}.png" for name in ("a", "b", "c")]
    for path, image in zip(paths, IMAGES, strict=True):
        cv2.imwrite(str(path), image)
    return paths


@pytest.fixture
def calibrated(without_sex, tmp_path):
    """Makes a predictor with another calibration, whose fields are given."""

    def make(**changed):
        fields = {"half_width": 10.0, "mean": np.zeros(10), "precision": np.eye(10), "images": 100}
        fitted = Calibration(**fields | {"max_distance": 1e9} | changed)
        fitted.save(tmp_path / "calibration.npz")
        return Predictor(without_sex, tmp_path)

    return make


def test_paths_and_arrays_give_the_same(predictor, files):
    expected = predictor(IMAGES)
    for given in (files, [str(path) for path in files], iter(files), [*files[:2], IMAGES[2]]):
        found = predictor(given)
        for key, values in expected.items():
            np.testing.assert_array_equal(found[key], values, err_msg=key)
    assert expected["accepted"].dtype == bool
    assert predictor(files[0])["bone_age_months"] == pytest.approx(expected["bone_age_months"][:1])
    assert len(predictor(IMAGES[0])["note"]) == len(predictor(str(files[0]))["note"]) == 1
    assert len(predictor(np.stack(IMAGES))["note"]) == 3
    assert {len(values) for values in predictor([]).values()} == {0}


def test_an_unreadable_file_costs_only_its_own_row(predictor, files, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    found = predictor([files[0], bad, files[1]])
    assert "bad.png: the content is not" in found["error"][1]
    assert found["error"][0] == found["error"][2] == ""
    assert np.isnan(found["bone_age_months"]).tolist() == [False, True, False]
    assert found["accepted"].tolist() == [True, False, True]
    np.testing.assert_array_equal(
        found["bone_age_months"][[0, 2]], predictor(files[:2])["bone_age_months"]
    )


def test_an_error_that_nobody_expects_is_that_of_one_image(predictor, files):
    cv2.imwrite(str(files[0]), IMAGES[0][:60])
    wrong = IMAGES[1] / 255  # a call would have refused it
    said = [
        result
        for results, _ in predictor.batches([files[0], wrong, files[2]], [-1, -1, 1])
        for result in results
    ]
    assert said[0] == f"{SMALL}; sex unknown: the network's own estimate is used"
    assert isinstance(said[1], InputError)
    assert "it cannot be read: ValueError: need uint8 [H, W]" in str(said[1])
    assert said[2] == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": None}, "images is None; give paths of files or uint8 arrays"),
        ({"images": 2.5}, r"images is 2\.5; give paths"),
        ({"images": "nowhere.png"}, r"'nowhere\.png': no such file"),
        ({"images": np.zeros((9, 9, 3), np.uint8)}, r"array \[9, 9, 3\], which looks like colour"),
        ({"images": [WORKDIR]}, "a folder; name its files"),
        ({"images": [IMAGES[0] / 255]}, "image 0 must be uint8"),
        ({"images": [None]}, "image 0 must be uint8"),
        ({"images": IMAGES, "male": [1]}, "male must hold 1, 0 or -1 for each of the 3"),
        ({"images": IMAGES, "male": ["M", "F", "M"]}, "male must hold 1, 0 or -1"),
        ({"images": IMAGES, "male": [[1], [0, 1], 1]}, "male must hold 1, 0 or -1"),
        ({"images": IMAGES, "stems": ["a"]}, "stems must name each of the 3"),
        ({"images": IMAGES, "stems": "abc"}, "as a list of texts"),
        ({"images": IMAGES, "stems": 3}, "as a list of texts"),
        ({"images": IMAGES, "stems": [1, 2, 3]}, "as a list of texts"),
    ],
)
def test_wrong_arguments_are_refused_in_words(predictor, arguments, message):
    with pytest.raises(InputError, match=message):
        predictor(**arguments)


@pytest.mark.parametrize("size", [0, -1, 2.5, "a", None, True])
def test_a_batch_size_is_a_whole_number(size):
    for load in (boneage_jax.load_predictor, boneage_jax.load_segmenter):
        with pytest.raises(InputError, match=r"batch_size=.* must be a whole number above 0"):
            load(WORKDIR, batch_size=size)
        with pytest.raises(InputError, match="must be a list of devices"):
            boneage_jax.load_segmenter(WORKDIR, devices=[size] if size else [])
        with pytest.raises(
            InputError, match=r"workdir=.* must be the path of a training's workdir"
        ):
            load(3 if size is None else "")


def test_ages_that_cannot_be_are_moved_and_noted(calibrated):
    plain = calibrated()(IMAGES)["bone_age_months"]
    found = calibrated(youngest=20.0, oldest=float(plain.min()) - 20)(IMAGES)
    assert (found["bone_age_months"] == np.float32(plain.min() - 10)).all()
    assert not found["accepted"].any()
    assert set(found["note"]) == {"age beyond those of training: the nearest is given"}
    for key in ("low_months", "high_months"):
        assert ((found[key] >= found["bone_age_months"]) == (key == "high_months")).all()


@pytest.mark.parametrize("half_width", [0.0, 5.0, 500.0])
def test_the_interval_holds_the_age(calibrated, half_width):
    predictor = calibrated(half_width=half_width, youngest=10.0, oldest=30.0)
    found = predictor([*IMAGES, np.zeros((9, 9), np.uint8)])
    assert (found["low_months"] >= 0).all()
    assert (found["low_months"] <= found["bone_age_months"]).all()
    assert (found["bone_age_months"] <= found["high_months"]).all()


def test_few_images_of_training_do_not_judge(calibrated, files, tmp_path):
    predictor = calibrated(max_distance=np.inf, images=2)
    found = predictor([*files, tmp_path / "a.png"])
    assert np.isnan(found["accepted"]).all()
    note = "interval holds 67% instead of 95%: 2 validation images; accepted is unknown: too few"
    assert all(text.startswith(note) for text in found["note"])
    (tmp_path / "bad.png").write_bytes(b"")
    written = write_predictions(predictor, [*files, tmp_path / "bad.png"], {}, tmp_path / "x.csv")
    with (tmp_path / "x.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["accepted"] for row in rows] == [""] * 4
    assert written[:3] == (3, 0, 1)
    lines = describe(predictor, written, {})
    assert lines[0] == "3 of 4 files read, 1 unreadable"
    assert "accepted is unknown: too few images in training (3 files)" in lines[1]
    assert lines[2] == f"network: {tmp_path}"


def test_sexes_that_are_missing_or_of_no_use_are_said(predictor, calibrated, files, tmp_path):
    found = predictor(files, male=[1, -1, 0])
    assert found["note"].tolist() == ["", "sex unknown: the network's own estimate is used", ""]
    other = calibrated()
    assert set(other(files, male=[1, -1, 0])["note"]) == {""}
    written = write_predictions(other, files, {"a": 1}, tmp_path / "x.csv")
    assert "--sex_csv is of no effect" in describe(other, written, {"a": 1})[1]


def test_a_sex_that_the_network_does_not_see_is_said(predictor):
    rows = {"predicted_age": np.full(5, 100.0, np.float32)}
    rows["p_male"] = np.array([0.97, 0.97, 0.03, 0.94, 0.97], np.float32)
    squares = [np.zeros((64, 64), np.uint8)] * 5
    found = predictor.calibrated(rows, squares, np.array([0, 1, 1, 0, -1]))["note"]
    assert ["sees the other sex" in note for note in found] == [True, False, True, False, False]


def test_an_empty_workdir_is_not_the_default(files, tmp_path, capsys):
    output = tmp_path / "ages.csv"
    assert call(predict, "--workdir=", f"--output={output}", files[0]) == 2
    assert "workdir=''" in capsys.readouterr().err and not output.exists()


def test_sexes_are_matched_as_images_are(files, tmp_path):
    table = tmp_path / "sexes.csv"
    table.write_bytes("Case ID;Gender\nA/a.PNG;M\nc;weiblich\nz;F\nÜ;M\n".encode("cp1252"))
    (tmp_path / "notes.txt").write_text("x")
    found, sexes, lines = check_arguments([str(tmp_path)], tmp_path / "x.csv", table)
    assert found == files and sexes == {"a": 1, "c": 0, "z": 0, "Ü": 1}
    assert lines == [
        "left out 2: 2 not images",
        f"{table}: 1 files without an id",
        f"{table}: 2 ids without a file",
    ]
    table.write_text("id,gender\na,1\nb,0\nc,1\n")
    _, sexes, lines = check_arguments([str(tmp_path)], tmp_path / "x.csv", table)
    assert sexes == {"a": 1, "b": 0, "c": 1}
    assert lines[1:] == [f"{table}: column 'gender': 1 is read as male, 0 as female"]
    # A column of files counts before one of numbers, as in a table for training.
    table.write_text("id,file,sex\nc,a.png,M\nb,b.png,F\na,c.png,F\n")
    _, sexes, lines = check_arguments([str(tmp_path)], tmp_path / "x.csv", table)
    assert sexes == {"a": 1, "b": 0, "c": 0}
    assert lines[1:] == [f"{table}: ids are those of column 'file'"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,age\na,5\n", "needs rows with the columns id,male; it has 'id', 'age'"),
        ("id,male\n", "needs rows"),
        ("id,male\na,maybe\n", "line 2: male='maybe' must be M/F"),
        ("id,male\na,1\na.png,0\n", "line 3: id 'a' appears twice, with another sex"),
        ("id,male\nq,1\n", "no id matches the stem of a given file"),
    ],
)
def test_a_wrong_table_of_sexes_is_named(files, tmp_path, text, message):
    (tmp_path / "sexes.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        check_arguments([str(tmp_path)], tmp_path / "x.csv", tmp_path / "sexes.csv")


def test_the_command(files, tmp_path, capsys):
    output = tmp_path / "ages.csv"
    assert call(predict, f"--workdir={WORKDIR}", f"--output={output}", tmp_path) == 0
    assert output.read_text().splitlines()[0] == (
        "file,bone_age_months,low_months,high_months,p_male,accepted,error,note"
    )
    assert "3 of 3 files read" in capsys.readouterr().out
    before = files[0].read_bytes()
    for target in (files[0], tmp_path / "new.png"):
        assert call(predict, f"--workdir={WORKDIR}", f"--output={target}", tmp_path) == 2
        assert "names an input" in capsys.readouterr().err
    assert files[0].read_bytes() == before
    reference = tmp_path / "reference.csv"
    reference.write_text("sex,age_months,mean,sd\nM,0,10,5\nM,200,190,9\nF,0,9,5\nF,200,190,9\n")
    both = tmp_path / "both.npz"
    for wrong, says in (
        ((f"--reference={reference}", f"--output={reference}"), "names an input"),
        ((f"--output={both}", f"--features={both}"), "both name"),
        (("--report=",), "must not be empty"),
        (("--output=",), "must not be empty"),
        (("--features=/proc/a.npz",), "/proc cannot be written"),
    ):
        assert call(predict, f"--workdir={WORKDIR}", *wrong, files[0]) == 2
        error = capsys.readouterr().err
        assert says in error and "Traceback" not in error
    assert reference.read_text().startswith("sex,age_months")


def test_arrays_have_the_notes_of_files(predictor, tmp_path):
    small, flat = IMAGES[0][:180], np.full((220, 220), 7, np.uint8)
    for name, image in (("a", small), ("b", flat)):
        cv2.imwrite(str(tmp_path / f"{name}.png"), image)
    of_arrays = predictor([small, flat], male=[1, 1])["note"]
    of_files = predictor([tmp_path / "a.png", tmp_path / "b.png"], male=[1, 1])["note"]
    assert of_arrays.tolist() == of_files.tolist() and SMALL in of_arrays[0]
    assert FLAT in of_arrays[1]

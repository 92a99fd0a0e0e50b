"""A network calibrated on radiographs of another site: what is fitted, said and refused."""

import csv
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

import boneage_jax
import tests.support.tiny_backbone  # noqa: F401  (registers the networks)
from boneage_jax import calibrate, predict
from boneage_jax.errors import InputError
from boneage_jax.evaluation.calibrate_run import (
    Labelled,
    choose_atlas,
    held_out_predictions,
    match_labels,
    read_site,
)
from boneage_jax.inference.atlas_ages import AtlasAges
from boneage_jax.inference.bias_correction import Correction
from boneage_jax.inference.calibration import Calibration
from boneage_jax.inference.load_trained import load_trained
from tests.support.dicom_files import dicom_file
from tests.support.unet_run import call
from tfds_rsna.hand_phantom.render import make_phantom
from tfds_rsna.radiograph_folder.columns import Columns

RUN = Path(__file__).parents[1] / "inference" / "old_workdirs" / "bone_age"
COUNT = 40
OFFSET = 25.0  # months that this site reads above the network


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Forty radiographs, one that cannot be read, and a table of what the site says of them."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "images").mkdir()
    images = [make_phantom(index, 64, "test").image for index in range(COUNT)]
    ages = boneage_jax.load_predictor(RUN)(images)["bone_age_months"]
    noise = np.random.default_rng(0).normal(0, 3, COUNT)
    lines = ["case;bone age (months)"]
    for number, (image, age) in enumerate(zip(images, ages, strict=True)):
        cv2.imwrite(str(folder / "images" / f"{number}.png"), image)
        lines.append(f"{number};{age + OFFSET + noise[number]:.2f}")
    (folder / "images" / "bad.png").write_bytes(b"no image")
    lines += ["bad;100.0", "elsewhere;90.0"]
    (folder / "ages.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_the_command(site, tmp_path, capsys):
    output, table = tmp_path / "calibrated", site / "ages.csv"
    images = site / "images"
    options = (f"--workdir={RUN}", f"--csv={table}", f"--output={output}")
    assert call(calibrate, *options, images) == 0
    text = capsys.readouterr().out
    errors = re.search(r"absolute error: ([\d.]+) -> ([\d.]+) months", text)
    assert float(errors[1]) == pytest.approx(OFFSET, abs=1.5)
    assert float(errors[2]) == pytest.approx(2.4, abs=1)  # of the noise: 3 * sqrt(2 / pi)
    margin = re.search(r"known to \+-([\d.]+) from 40", text)
    assert float(margin[1]) == pytest.approx(2 * 3 / 40**0.5, abs=0.3)
    covered = re.search(r"holds the age of (\d+) of 40 .* -> (\d+) of 40", text)
    assert 35 <= int(covered[2]) <= 40
    assert re.search(r"interval: \+-[\d.]+ -> \+-[\d.]+ months", text)
    assert "not as the age of the patient" not in text
    assert "1 rows without a radiograph" in text and "1 radiographs unreadable, e.g." in text
    # What predict gives with the result: the ages of the site, in an interval fitted to it.
    ages = tmp_path / "ages.csv"
    assert call(predict, f"--workdir={output}", f"--output={ages}", images) == 0
    with ages.open() as file:
        rows = {Path(row["file"]).stem: row for row in csv.DictReader(file)}
    with table.open() as file:
        truth = {row["case"]: row for row in csv.DictReader(file, delimiter=";")}
    away = [
        float(rows[f"{n}"]["bone_age_months"]) - float(truth[f"{n}"]["bone age (months)"])
        for n in range(COUNT)
    ]
    assert abs(np.median(away)) < 1 and np.abs(away).mean() < 3
    width = float(rows["0"]["high_months"]) - float(rows["0"]["bone_age_months"])
    assert np.mean(np.abs(away) <= width) >= 0.95 and width < 15
    noted = json.loads((output / "site_calibration.json").read_text())
    assert noted["images"] == COUNT
    assert noted["after"]["half_width"] == pytest.approx(width, abs=0.1)
    stored = Calibration.load(output / "calibration.npz").correction
    assert noted["correction"] == {"slope": stored.slope, "intercept": stored.intercept}
    assert noted["method"] == "ridge"
    # The weights are those of the run, rounded; again from the result they stay as they are.
    again = tmp_path / "again"
    options = (f"--workdir={output}", f"--csv={table}", f"--output={again}", "--method=none")
    assert call(calibrate, *options, images) == 0
    once, twice = ((folder / "network.safetensors").read_bytes() for folder in (output, again))
    assert once == twice
    assert load_trained(again).flops_spent == load_trained(RUN).flops_spent
    assert Calibration.load(again / "calibration.npz").correction.intercept == 0
    assert not list(again.rglob("*.png"))


def _few(text):
    return "\n".join(text.splitlines()[:20]) + "\n"


@pytest.mark.parametrize(
    ("change", "options", "says"),
    [
        (_few, [], "19 radiographs with an age are too few to calibrate: at least 30"),
        (str, ["--method=cubic"], "--method=cubic must be one of none, shift, line, ridge"),
        (str, ["--age_column=x"], "has no column 'x'"),
        (lambda text: text.replace("case", "which"), [], "no recognisable file column"),
        (lambda text: text + "1;3.0\n", [], "lines 3 and 44: '1' has two ages"),
        (lambda text: "case;age\na;1\nb;2\n", [], "look like years; give --age_unit=years"),
        (lambda text: "case;age (months)\na;100\n", [], "names none of the 41 radiographs"),
    ],
)
def test_what_cannot_be_fitted_is_refused_before_anything_is_compiled(
    site, tmp_path, capsys, change, options, says
):
    table = tmp_path / "ages.csv"
    table.write_text(change((site / "ages.csv").read_text()))
    arguments = (f"--workdir={RUN}", f"--csv={table}", f"--output={tmp_path / 'out'}")
    assert call(calibrate, *arguments, *options, site / "images") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert not (tmp_path / "out").exists()


def test_a_sex_that_the_table_lacks_is_that_of_the_header(tmp_path):
    """As `predict` takes it, or the fit would be to other ages than those that it corrects."""
    image = make_phantom(0, 64, "test").image.reshape(64, 64)
    found = {"a.dcm": ("M", -1), "b.dcm": ("F", -1), "c.dcm": ("F", 1), "d.dcm": ("", 0)}
    labelled = []
    for name, (header, male) in found.items():
        (tmp_path / name).write_bytes(dicom_file(image, PatientSex=header))
        labelled.append(Labelled(tmp_path / name, 100.0, male))
    read, squares, lines = read_site(boneage_jax.load_predictor(RUN), labelled)
    assert [each.male for each in read] == [1, 0, 1, 0] and len(squares) == 4
    assert lines == [
        "2 radiographs: sex of the DICOM header is used",
        "1 radiographs: the DICOM header has the other sex, which is not used",
    ]


def test_a_fit_without_gain_says_so(tmp_path, capsys):
    """Ages of the network itself, but for noise: there is nothing to correct."""
    (tmp_path / "in").mkdir()
    images = [make_phantom(index, 64, "test").image for index in range(COUNT)]
    ages = boneage_jax.load_predictor(RUN)(images)["bone_age_months"]
    noise = np.random.default_rng(0).normal(0, 3, COUNT)
    lines = ["file,bone age (months)"]
    for number, image in enumerate(images):
        cv2.imwrite(str(tmp_path / "in" / f"{number}.png"), image)
        lines.append(f"{number}.png,{ages[number] + noise[number] - noise.mean():.2f}")
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    options = (f"--workdir={RUN}", f"--csv={tmp_path / 't.csv'}", f"--output={tmp_path / 'out'}")
    assert call(calibrate, *options, tmp_path / "in") == 0
    assert "no gain is shown: the mean error may be chance" in capsys.readouterr().out


def test_two_radiographs_of_one_name_are_not_guessed_between(site, tmp_path):
    (tmp_path / "1.png").write_bytes((site / "images" / "1.png").read_bytes())
    with pytest.raises(InputError, match="have the same name, so"):
        match_labels([str(site / "images"), str(tmp_path)], site / "ages.csv", Columns())


def test_units_and_sexes_of_the_table_are_read(site, tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("file,age_years,sex\nimages\\1.PNG,10,M\n2.png,5.5,F\n3,7,\n")
    labelled, lines = match_labels([str(site / "images")], table, Columns())
    found = {each.file.name: (each.age, each.male) for each in labelled}
    assert found == {"1.png": (120.0, 1), "2.png": (66.0, 0), "3.png": (84.0, -1)}
    assert "38 radiographs without a row" in lines


def _site(change, spread, seed):
    """A hundred radiographs of a site and a thousand new ones: (predicted, true) of each."""
    rng = np.random.default_rng(seed)
    true = [rng.uniform(20, 220, count) for count in (100, 1000)]
    return [(change(age) + rng.normal(0, spread, len(age)), age) for age in true]


def _biases(change, spread=10.0, sites=60):
    """Mean errors in months of new radiographs before and after calibration, [sites, 2]."""
    found = []
    for seed in range(sites):
        (predicted, true), (new, age) = _site(change, spread, seed)
        corrected = Correction.fit(predicted, true, "ridge")(new)
        found.append([(new - age).mean(), (corrected - age).mean()])
    return np.array(found)


@pytest.mark.parametrize("bias", [2.5, -4.0, 8.0])
def test_most_of_a_known_bias_is_taken_back(bias):
    before, after = _biases(lambda age: age + bias).T
    assert np.median(np.abs(before)) == pytest.approx(abs(bias), abs=0.2)
    assert np.median(np.abs(after)) < abs(bias) / 2
    assert abs(after.mean()) < 0.15 * abs(bias)  # what is left over many sites is what is shrunk


def test_a_bias_of_one_standard_error_is_not_left_as_it_is():
    after = _biases(lambda age: age + 1.0)[:, 1]
    assert abs(after.mean()) < 0.4 and np.median(np.abs(after)) < 0.8


def test_a_network_without_bias_loses_no_more_than_the_noise_of_a_hundred_ages():
    after = _biases(lambda age: age)[:, 1]
    assert after.std() < 1.15  # the mean of 100 errors is known to 1 month
    loss = []
    for seed in range(40):
        (predicted, true), (new, age) = _site(lambda age: age, 10.0, seed)
        corrected = Correction.fit(predicted, true, "ridge")(new)
        loss.append(np.abs(corrected - age).mean() - np.abs(new - age).mean())
    # Of normal errors of 10 months: 8.0 months, and 0.04 for each square month of uncertainty.
    assert np.mean(loss) < 0.12


def test_another_slope_is_taken_back():
    lost = []
    for seed in range(20):
        (predicted, true), (new, age) = _site(lambda age: age / 1.08, 10.0, seed)
        corrected = Correction.fit(predicted, true, "ridge")(new)
        lost.append(np.abs(corrected - age).mean() - np.abs(1.08 * new - age).mean())
    assert np.mean(lost) < 0.3  # of 9 months: as good as knowing the slope


@pytest.mark.parametrize(
    "change",
    [lambda age: age, lambda age: age + 9, lambda age: 30 + 0.7 * age],
)
def test_intervals_of_radiographs_not_fitted_to_hold_95_percent(change):
    inside, new_inside = [], []
    for seed in range(10):
        (predicted, true), (new, age) = _site(change, 4.0, seed)
        corrected, widths = held_out_predictions(predicted, true, "ridge")
        inside.append((np.abs(corrected - true) <= widths).mean())
        blank = np.zeros((2, 8, 8), np.uint8)
        fitted = Calibration.fit(predicted, true, blank, "ridge", training_ages=true)
        ages, _ = fitted.possible(fitted.correction(new))
        low, high = fitted.interval(ages)
        assert (low >= 0).all() and (low <= ages).all() and (ages <= high).all()
        assert high.max() <= max(fitted.bounds)
        new_inside.append(((low <= age) & (age <= high)).mean())
    assert 0.93 <= np.mean(inside) <= 0.97 and 0.93 <= np.mean(new_inside) <= 0.97


def test_no_prediction_is_corrected_by_its_own_age():
    """One wild age moves the corrections of the other folds, and not that of its own."""
    true = np.linspace(50, 150, 40)
    predicted = true + 5
    true[7] += 1000
    corrected, _ = held_out_predictions(predicted, true, "line")
    assert corrected[7] == pytest.approx(predicted[7] - 5)
    assert np.abs(corrected - predicted + 5).max() > 1


@pytest.mark.parametrize(("shift", "kept"), [(0, True), (6, False)])
def test_an_atlas_is_kept_only_where_readers_write_its_ages(shift, kept):
    rng = np.random.default_rng(0)
    plates = rng.choice(np.arange(24.0, 205.0, 12.0), 300)
    atlas, ones = AtlasAges.fit(plates, np.ones(300), 4.0), np.ones(300)
    raw, true = plates + rng.normal(0, 3, 300), plates + shift
    found, (ages, _), lines = choose_atlas(raw, true, "ridge", atlas, ones)
    assert (found is atlas) == kept and (found is None) != kept
    assert ("kept" in lines[0]) == kept and len(lines) == 1
    assert np.abs(ages - true).mean() < 3  # the error of the network; the atlas's is 6 if wrong

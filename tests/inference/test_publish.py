"""Published networks: what is written, what a reader gets, and what is refused."""

import fnmatch
import json
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
import safetensors.numpy
import yaml

import boneage_jax
import tests.support.tiny_backbone  # noqa: F401  (registers the networks)
from boneage_jax import evaluate, predict, publish, segment
from boneage_jax.config import load_config
from boneage_jax.inference.background_removal import Background
from boneage_jax.inference.load_trained import load_members, load_trained
from boneage_jax.inference.publish import add_evaluation, write_published
from boneage_jax.json_file import read_json
from boneage_jax.report.model_card import model_card
from boneage_jax.storage.layout import SITE
from boneage_jax.storage.published import rounded, write_sums
from boneage_jax.storage.shipped import (
    FETCHED,
    best_network,
    network_table,
    shipped_networks,
)
from tests.support.unet_run import call
from tfds_rsna.hand_phantom.render import make_phantom

OLD = Path(__file__).parent / "old_workdirs"
_SITE = {
    **{"images": 40, "correction": {"slope": 1.02, "intercept": -3.0}},
    **{"before": {"mae": 9.0}, "after": {"mae": 7.5}},
}
IMAGES = [make_phantom(index, 96, "test").image for index in range(3)]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder of published networks: one, two that are averaged, and a U-Net."""
    folder = tmp_path_factory.mktemp("weights")
    for name in ("bone_age", "ensemble", "unet"):
        write_published(load_members(OLD / name), OLD / name, folder / f"tiny_{name}")
    return folder


@pytest.fixture
def copy(weights, tmp_path):
    """A published network that a test may damage, with the name that others know it by."""
    return Path(shutil.copytree(weights / "tiny_bone_age", tmp_path / "tiny_bone_age"))


@pytest.fixture
def known(weights, monkeypatch, tmp_path):
    """The folder of published networks is on the search path; the current folder is empty."""
    monkeypatch.setenv("BONEAGE_JAX_WEIGHTS", f"/nowhere:{weights}")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    return weights


@pytest.mark.parametrize("name", ["bone_age", "ensemble"])
def test_predictions_are_those_of_the_run(weights, name):
    before = boneage_jax.load_predictor(OLD / name)(IMAGES, male=[1, 0, -1])
    after = boneage_jax.load_predictor(weights / f"tiny_{name}")(IMAGES, male=[1, 0, -1])
    assert before.keys() == after.keys()
    for key, values in before.items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(after[key], values, rtol=2e-3, err_msg=key)
        else:
            assert (after[key] == values).all()
    ages = [found["bone_age_months"] for found in (before, after)]
    assert 0 < np.abs(ages[0] - ages[1]).max() < 0.1  # rounded, and but little


def test_flops_and_steps_of_the_training_are_kept(weights):
    for name in ("bone_age", "ensemble", "unet"):
        before, after = load_members(OLD / name), load_members(weights / f"tiny_{name}")
        assert [(m.flops_spent, m.step) for m in before] == [(m.flops_spent, m.step) for m in after]
    first = load_trained(OLD / "ensemble" / "members" / "0")
    found = load_trained(weights / "tiny_ensemble")
    assert found.flops_spent == first.flops_spent
    expected = jax.tree.map(lambda x: np.float32(rounded(np.asarray(x))), first.variables)
    jax.tree.map(np.testing.assert_array_equal, found.variables, expected)


def test_masks_are_those_of_the_run(weights, known):
    before, after = (
        boneage_jax.load_segmenter(source)(IMAGES) for source in (OLD / "unet", "tiny_unet")
    )
    for old, new in zip(before, after, strict=True):
        assert (old.mask == new.mask).mean() > 0.99
    assert len(boneage_jax.load_segmenter()(IMAGES)) == 3
    by_name = Background("tiny_unet", "multiply")(IMAGES[0], "", 96)
    np.testing.assert_array_equal(by_name > 0, (after[0].mask & (IMAGES[0] > 0)))


def test_rounding_keeps_what_float16_cannot_hold():
    values = {
        "kernel": (np.full((2, 2), 0.1), np.float16),
        "bias": (np.full(3, 1e-7), np.float32),
        "large": (np.full((2, 2), 7e4), np.float32),
        "empty": (np.zeros((0, 3)), np.float16),
    }
    for name, (array, dtype) in values.items():
        assert rounded(array).dtype == dtype, name
    assert np.float32(rounded(values["large"][0])).max() == np.float32(7e4)


def test_the_files_are_plain_and_hold_no_path_of_this_machine(weights, tmp_path):
    """Read by safetensors itself and by sha256sum; no pickle, no place of the publisher's."""
    folder = weights / "tiny_ensemble"
    tensors = safetensors.numpy.load_file(folder / "network.safetensors")
    assert {name.split("/")[0] for name in tensors} == {"0", "1"}
    assert {array.dtype.name for array in tensors.values()} == {"float16", "float32"}
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=folder, capture_output=True)
    assert done.returncode == 0 and done.stdout.count(b": OK\n") == 6
    assert stat.S_IMODE((folder / "network.safetensors").stat().st_mode) & 0o044
    source = Path(shutil.copytree(OLD / "bone_age", tmp_path / "run"))
    for file, key in (("config.json", None), ("report.json", "config")):
        content = json.loads((source / file).read_text())
        part = content[key] if key else content
        part["data"] |= {"raw_dir": "home/me/raw", "data_dir": "/home/me/data", "masks": "~/masks"}
        part["init_from"] = "/home/me/runs/first"
        (source / file).write_text(json.dumps(content))
    write_published(load_members(source), source, tmp_path / "out")
    for path in (tmp_path / "out").iterdir():
        assert b"/home" not in path.read_bytes() and b"me/raw" not in path.read_bytes(), path
    assert load_config(tmp_path / "out" / "config.json").init_from == "first"


@pytest.mark.parametrize(
    "name",
    [
        *("network.safetensors", "config.json", "facts.json", "calibration.npz", "report.json"),
        "LICENSE",
    ],
)
def test_a_changed_byte_is_refused(copy, name):
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(boneage_jax.InputError, match=f"{name} is not what was published") as error:
        boneage_jax.load_predictor(copy)
    assert "\n" not in str(error.value)
    (copy / name).unlink()
    with pytest.raises(boneage_jax.InputError, match=f"{name} is missing, SHA256SUMS lists it"):
        boneage_jax.load_predictor(copy)


def test_the_card_may_be_edited(copy):
    (copy / "README.md").write_text("mine")
    boneage_jax.load_predictor(copy)


def _without(name):
    def change(text):
        return "".join(line for line in text.splitlines(True) if not line.endswith(f" {name}\n"))

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_without("calibration.npz"), "does not list calibration.npz"),
        (_without("network.safetensors"), "does not list network.safetensors"),
        (lambda text: text + "0" * 64 + "  ../config.json\n", "line 7 is no sha256 sum"),
        (lambda text: text + "0" * 64 + "  /etc/passwd\n", "line 7 is no sha256 sum"),
        (lambda text: text + "no sum\n", "line 7 is no sha256 sum"),
        (lambda text: text + "0" * 64 + "  background\n", "background is missing"),
        (lambda text: "", "does not list"),
    ],
)
def test_sums_that_do_not_cover_the_folder_are_refused(copy, change, says):
    path = copy / "SHA256SUMS"
    path.write_text(change(path.read_text()))
    with pytest.raises(boneage_jax.InputError, match=says):
        boneage_jax.load_predictor(copy)
    path.unlink()
    with pytest.raises(boneage_jax.InputError, match="SHA256SUMS is missing"):
        boneage_jax.load_predictor(copy)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(boneage_jax.InputError, match="SHA256SUMS is damaged"):
        boneage_jax.load_predictor(copy)


def test_what_is_no_file_is_not_waited_for(copy):
    (copy / "facts.json").unlink()
    os.mkfifo(copy / "facts.json")
    with pytest.raises(boneage_jax.InputError, match=r"facts.json is not a file"):
        boneage_jax.load_predictor(copy)


@pytest.mark.parametrize(
    ("tensors", "notes", "says"),
    [
        ({}, {"format": 9}, "is of format 9, not 1: update boneage_jax"),
        ({}, None, "is no network of boneage_jax, its metadata say"),
        ({}, {"members": []}, "names 0 networks"),
        ({}, {"members": [{"flops": -1, "step": 2}]}, "names 1 networks"),
        ({}, {"members": [1]}, "is no network of boneage_jax"),
        ({"0/params/sex/kernel": np.full((8, 1), np.nan, np.float16)}, {}, "finite"),
        ({"0/params/sex/kernel": np.zeros((8, 1), np.int32)}, {}, "finite"),
        ({"0/params/sex/kernel": np.zeros((9, 1), np.float16)}, {}, r"sex/kernel is \[9, 1\]"),
        ({"0/params/more": np.zeros(3, np.float32)}, {}, "a network with nothing"),
        ({"0/params/sex/kernel": None}, {}, "sex/kernel is nothing"),
    ],
)
def test_weights_that_do_not_fit_are_refused_though_their_sum_is_right(copy, tensors, notes, says):
    path = copy / "network.safetensors"
    found = safetensors.numpy.load_file(path)
    before = {"format": 1, "members": [{"flops": 1, "step": 1}]}
    found = {name: array for name, array in (found | tensors).items() if array is not None}
    metadata = None if notes is None else {"boneage_jax": json.dumps(before | notes)}
    path.write_bytes(safetensors.numpy.save(found, metadata))
    write_sums(copy)
    with pytest.raises(boneage_jax.InputError, match=says) as error:
        boneage_jax.load_predictor(copy)
    assert str(path) in str(error.value)


def test_a_truncated_file_is_refused(copy):
    path = copy / "network.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    write_sums(copy)
    with pytest.raises(boneage_jax.InputError, match=r"network.safetensors is damaged"):
        boneage_jax.load_predictor(copy)


def test_names(known, weights, monkeypatch, tmp_path):
    monkeypatch.setattr(boneage_jax, "__file__", str(tmp_path / "__init__.py"))  # without its own
    table = network_table(shipped_networks())
    names = [line.split()[0] for line in table]
    assert sorted(names[1:]) == ["tiny_bone_age", "tiny_ensemble", "tiny_unet"]
    assert names[0] == "name" and names[3] == "tiny_unet"
    report = read_json(OLD / "bone_age" / "report.json")
    (line,) = [line for line in table if line.startswith("tiny_bone_age ")]
    assert line.split()[1:3] == ["tiny", "64"] and f"{report['age']['mae']:.2f} months" in line
    assert "2 x tiny" in " ".join(table)
    assert best_network() == "tiny_bone_age"  # the ensemble is not the default, whatever its error
    expected = boneage_jax.load_predictor(weights / best_network())(IMAGES)
    for source in (None, best_network()):
        found = boneage_jax.load_predictor(source)(IMAGES)
        np.testing.assert_array_equal(found["bone_age_months"], expected["bone_age_months"])
    with pytest.raises(
        boneage_jax.InputError, match=r"tiny_bone_ag holds no run.*did you mean tiny_"
    ):
        boneage_jax.load_predictor("tiny_bone_ag")
    with pytest.raises(boneage_jax.InputError, match="task 'hand_mask'"):
        boneage_jax.load_predictor("tiny_unet")
    # A folder of the user's counts before a name.
    shutil.copytree(OLD / "bone_age", "tiny_ensemble")
    assert load_trained("tiny_ensemble").folder == Path("tiny_ensemble")


def test_without_any_network_one_line_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("BONEAGE_JAX_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(boneage_jax, "__file__", str(tmp_path / "__init__.py"))
    cv2.imwrite(str(tmp_path / "hand.png"), IMAGES[0])
    assert call(predict, "--list") == 0
    assert capsys.readouterr().out == "no trained network comes with this version\n"
    for door, *options in ((predict,), (segment, f"--output={tmp_path / 'masks'}")):
        assert call(door, *options, tmp_path / "hand.png") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: no trained network comes with this version; name")


def test_predict_for_a_person_and_as_json(known, tmp_path, capsys):
    for number, image in enumerate(IMAGES):
        cv2.imwrite(str(tmp_path / f"{number}.png"), cv2.resize(image, (200, 200)))
    (tmp_path / "bad.png").write_bytes(b"no image")
    found = boneage_jax.load_predictor("tiny_bone_age")(sorted(tmp_path.glob("[0-2].png")))
    arguments = ("--workdir=tiny_bone_age", *sorted(tmp_path.glob("*.png")))
    assert call(predict, *arguments, "--json") == 0
    captured = capsys.readouterr()
    rows = [json.loads(line) for line in captured.out.splitlines()]
    assert [Path(row["file"]).name for row in rows] == ["0.png", "1.png", "2.png", "bad.png"]
    for row, age, note in zip(rows, found["bone_age_months"], found["note"], strict=False):
        assert row["bone_age_months"] == pytest.approx(age, rel=1e-5) and row["note"] == note
        assert row["accepted"] in (True, False, None) and row["error"] == ""
    columns = ("file", *boneage_jax.load_predictor("tiny_bone_age").columns, "error", "note")
    assert all(tuple(row) == columns for row in rows)
    assert rows[3]["bone_age_months"] is None and "the content is not" in rows[3]["error"]
    assert "3 of 4 files read" in captured.err
    assert "network: tiny_bone_age" in captured.err.splitlines()
    assert call(predict, *arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    months = round(float(found["bone_age_months"][0]))
    assert lines[0].endswith("0.png") and f"{months // 12} year" in lines[1]
    assert [line.split()[0] for line in lines[1:5]] == ["bone", "interval", "p_male", "accepted"]
    assert lines[-1].startswith("  error     ") and "bad.png" in lines[-2]
    assert call(predict, *arguments, "--output=-") == 0
    printed = capsys.readouterr().out
    assert call(predict, *arguments, f"--output={tmp_path / 'ages.csv'}") == 0
    assert printed == (tmp_path / "ages.csv").read_text()
    assert printed.startswith("file,bone_age_months,low_months,high_months,p_male,accepted,error,")
    capsys.readouterr()
    for wrong in (("--json", "--output=-"), ()):
        assert call(predict, *wrong, *(arguments if wrong else ())) == 2
        assert "exclude" in (line := capsys.readouterr().err) or "required: PATH" in line


def test_the_publish_command(phantoms, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "terms.txt").write_text("mine alone")
    options = (f"--workdir={OLD / 'bone_age'}", "--name=tiny_64", "--license=terms.txt")
    assert call(publish, *options, "--output=out") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("out/network.safetensors: 1 network, 0.0 MB")
    mean, largest = re.search(
        r"phantoms by ([\d.]+) months on average, ([\d.]+) at", lines[1]
    ).groups()
    assert 0 < float(mean) <= float(largest) < 0.1
    assert (tmp_path / "out" / "LICENSE").read_text() == "mine alone"
    assert "# tiny_64" in (tmp_path / "out" / "README.md").read_text()
    assert call(publish, *options, "--output=out") == 2
    assert "--output=out exists; name a new folder" in capsys.readouterr().err
    assert call(publish, *options, "--output=no/such/place") == 2
    assert "must be in a folder that exists" in capsys.readouterr().err
    assert call(publish, *options, "--output=other", f"--license={tmp_path / 'none'}") == 2
    assert "none cannot be read" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "terms.txt"]


def test_a_published_network_is_evaluated_elsewhere(weights, phantoms, tmp_path, capsys):
    options = (f"--workdir={OLD / 'bone_age'}", f"--data_dir={phantoms}")
    assert call(publish, *options, f"--output={tmp_path / 'out'}") == 0
    change = re.search(
        r"32 images of split validation .* error ([+-][\d.]+)", capsys.readouterr().out
    )
    assert abs(float(change[1])) < 0.05
    options = (f"--workdir={tmp_path / 'out'}", f"--data_dir={phantoms}")
    assert call(evaluate, *options) == 2
    assert "is a published network, which stays as it is; give --output" in capsys.readouterr().err
    output = tmp_path / "result"
    assert call(evaluate, *options, f"--output={output}", "--split=test", "--unlock_test") == 0
    found, before = read_json(output / "report.json"), read_json(OLD / "bone_age" / "report.json")
    assert found["compute"]["train_flops"] == before["compute"]["train_flops"]
    assert found["dataset"]["test_openings"] == 1 and found["age"]["mae"] > 0
    load_trained(tmp_path / "out")  # unchanged


def test_the_u_net_of_a_network_without_background_is_published_with_it(tmp_path):
    source = Path(shutil.copytree(OLD / "bone_age", tmp_path / "run"))
    facts = json.loads((source / "facts.json").read_text())
    (source / "facts.json").write_text(json.dumps(facts | {"background": "multiply"}))
    shutil.copytree(OLD / "unet", source / "background" / "unet")
    note = {"mode": "multiply", "cost": {"images": 3}, "empty": [], "doubtful": {}}
    (source / "background" / "background.json").write_text(json.dumps(note))
    write_published(load_members(source), source, tmp_path / "out")
    before, after = (boneage_jax.load_predictor(tmp_path / name) for name in ("run", "out"))
    for image in IMAGES:  # what the age network is given
        old, new = (each.fit(image, "").astype(int) for each in (before, after))
        assert (np.abs(old - new) > 0).mean() < 0.01 and (old != image[:64, :64]).any()
    unet = tmp_path / "out" / "background" / "unet"
    (unet / "config.json").write_text((unet / "config.json").read_text() + " ")
    with pytest.raises(boneage_jax.InputError, match=r"unet/config.json is not what was published"):
        boneage_jax.load_predictor(tmp_path / "out")


def test_a_card_states_what_the_report_does(weights):
    text = (weights / "tiny_bone_age" / "README.md").read_text()
    report = read_json(OLD / "bone_age" / "report.json")
    _, header, body = text.split("---\n", 2)
    (model,) = yaml.safe_load(header)["model-index"]
    (result,) = model["results"]
    assert result["metrics"][0]["value"] == round(report["age"]["mae"], 4)
    assert result["dataset"]["type"] == "hand_phantom"
    for sex, row in report["age"]["by_sex"].items():
        assert f"| {sex} | {row['n']} | {row['mae']:.2f} |" in body
    for row in report["age"]["by_age"]:
        assert f"| {row['low']}–{row['high']} | {row['n']} | {row['mae']:.2f} |" in body
    assert "not for the care of patients" in body and "None" not in body and "{{" not in body
    mask = (weights / "tiny_unet" / "README.md").read_text()
    assert "intersection over union" in mask and "segment --output=MASKS" in mask
    splits = read_json(OLD / "unet" / "report.json")["dataset"]["splits"]
    assert f"Trained on {splits['train']} images" in mask.partition("## Limits")[2]
    assert "Under stress" not in text


def test_a_card_shows_what_the_report_and_the_publisher_add():
    report = read_json(OLD / "bone_age" / "report.json")
    row = {"what": "gamma 2", "mae": 9.876, "change": 1.234, "accepted": 0.925}
    report["stress"] = {"images": 200, "rows": [row]}
    report["dataset"]["name"] = "my_hospital"
    card = model_card("one", report, pixels=64, data="Radiographs of one hospital.")
    assert "| gamma 2 | 9.88 | +1.23 | 92.5% |" in card and "200 images of the split" in card
    assert "Radiographs of one hospital." in card and "my_hospital" in card


def test_later_evaluations_are_added_to_report_and_card(tmp_path):
    source, new = OLD / "bone_age", tmp_path / "new"
    later = read_json(source / "report.json")
    later["dataset"] |= {"split": "locked", "splits": {"locked": 600}}
    later["age"] |= {"mae": 7.125, "mae_low": 6.5, "mae_high": 7.5, "bias": -0.25}
    stressed = read_json(source / "report.json") | {
        "stress": {"images": 9, "rows": [{"what": "x", "mae": 1, "change": 1, "accepted": 1}]}
    }
    files = [tmp_path / "locked.json", tmp_path / "stressed.json"]
    for file, content in zip(files, (later, stressed), strict=True):
        file.write_text(json.dumps(content))
    write_published(load_members(source), source, new, evaluations=files)
    card = (new / "README.md").read_text()
    assert "On the locked split (600 images): mean absolute error **7.12** months" in card
    assert "(6.50 to 7.50), mean error -0.25" in card and "## Under stress" in card
    (part,) = read_json(new / "report.json")["evaluations"]
    assert part["split"] == "locked" and part["age"]["mae"] == 7.125


def test_a_network_that_is_calibrated_to_a_site_says_so(weights, tmp_path, monkeypatch):
    """On its card, in the list, and in what is published of it; figures stay those before."""
    source, once, twice = weights / "tiny_bone_age", tmp_path / "once", tmp_path / "twice"
    write_published(load_members(source), source, once, card=False, more={SITE: _SITE})
    write_published(load_members(once), once, twice)
    for folder in (once, twice):
        card = (folder / "README.md").read_text()
        assert card.count("**Calibrated** to 40 radiographs") == 1
        assert "age = 1.020 x age -3.0 months" in card and "9.00 months before" in card
        assert card.index("**Calibrated**") < card.index("## Use")
        assert read_json(folder / SITE) == _SITE
    monkeypatch.setenv("BONEAGE_JAX_WEIGHTS", str(tmp_path))
    lines = network_table(shipped_networks())
    assert all("before its calibration" in line for line in lines if "once" in line)
    with pytest.raises(boneage_jax.InputError, match="calibrated to a site, and evaluations"):
        write_published(load_members(once), once, tmp_path / "no", evaluations=[tmp_path / "r"])


def test_all_that_is_published_is_fetched_from_the_hub(weights, tmp_path):
    """But for the card; the sums would miss the rest."""
    source = weights / "tiny_bone_age"
    write_published(load_members(source), source, tmp_path / "w", card=False, more={SITE: _SITE})
    shutil.copytree(OLD / "unet", tmp_path / "w" / "background" / "unet")
    files = [path.relative_to(tmp_path / "w") for path in (tmp_path / "w").rglob("*")]
    wanted = {str(path) for path in files if (tmp_path / "w" / path).is_file()} - {"README.md"}
    assert SITE in wanted and len(wanted) > 8
    assert wanted == {name for name in wanted if any(fnmatch.fnmatch(name, p) for p in FETCHED)}


def test_neither_calibrated_nor_damaged_networks_are_the_default(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(boneage_jax, "__file__", str(tmp_path / "__init__.py"))  # without its own
    source = weights / "tiny_bone_age"
    write_published(load_members(source), source, tmp_path / "a", card=False, more={SITE: _SITE})
    monkeypatch.setenv("BONEAGE_JAX_WEIGHTS", str(tmp_path))
    with pytest.raises(boneage_jax.InputError, match="no trained network comes"):
        best_network()
    shutil.copytree(source, tmp_path / "damaged")
    (tmp_path / "damaged" / "config.json").write_text("{")
    shutil.copytree(source, tmp_path / "good")
    assert best_network() == "good"
    assert boneage_jax.load_predictor("a")(IMAGES[0])["bone_age_months"].shape == (1,)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, "own report states"),
        ({"config": {"model": {}}}, "of another network"),
        ({"dataset": 3}, "is no report.json"),
    ],
)
def test_an_evaluation_that_does_not_belong_is_refused(change, says, tmp_path):
    report = read_json(OLD / "bone_age" / "report.json")
    file = tmp_path / "r.json"
    file.write_text(json.dumps(report | change))
    with pytest.raises(boneage_jax.InputError, match=says):
        add_evaluation(report, file)
    for key, value in (("age", report["age"] | {"mae": 1.0}), ("config", {"seed": 9})):
        other = report | {key: report[key] | value if key == "config" else value}
        file.write_text(json.dumps(other))
        with pytest.raises(boneage_jax.InputError, match="of another network"):
            add_evaluation(report, file)
    with pytest.raises(boneage_jax.InputError, match="does not exist"):
        add_evaluation(report, tmp_path / "none.json")


def test_the_hub_is_a_source_and_its_cache_does_without_a_network(weights, tmp_path, monkeypatch):
    """The folders of the client's own cache, read by the client itself, offline."""
    hub = pytest.importorskip("huggingface_hub")
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")  # nothing listens there
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repo = tmp_path / "models--me--tiny"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("a" * 40)
    shutil.copytree(weights / "tiny_bone_age", repo / "snapshots" / ("a" * 40))
    expected = boneage_jax.load_predictor(weights / "tiny_bone_age")(IMAGES[0])
    found = boneage_jax.load_predictor("hf:me/tiny")(IMAGES[0])
    assert found["bone_age_months"] == expected["bone_age_months"]
    with pytest.raises(
        boneage_jax.InputError, match=r"hf:me/other cannot be fetched.*no connection"
    ):
        boneage_jax.load_predictor("hf:me/other")
    (repo / "refs" / "v1").write_text("b" * 40)
    shutil.copytree(weights / "tiny_ensemble", repo / "snapshots" / ("b" * 40))
    assert len(boneage_jax.load_predictor("hf:me/tiny@v1").members) == 2
    for wrong in ("hf:me", "hf:me/tiny/network.safetensors", "hf:me/tiny@", "hf:me/@v1"):
        with pytest.raises(boneage_jax.InputError, match="must read hf:OWNER/REPO"):
            boneage_jax.load_predictor(wrong)

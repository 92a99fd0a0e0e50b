"""Publishing: what is written, and what a reader gets."""

import json
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

import boneage_jax
from boneage_jax import evaluate, predict, publish
from boneage_jax.config import load_config
from boneage_jax.inference.background_removal import Background
from boneage_jax.inference.load_trained import load_members, load_trained
from boneage_jax.inference.publish import add_evaluation, write_published
from boneage_jax.json_file import read_json
from boneage_jax.storage.layout import SITE
from boneage_jax.storage.published import rounded
from boneage_jax.storage.shipped import (
    network_table,
    shipped_networks,
)
from tests.support.published_runs import IMAGES, OLD, SITE_NOTE
from tests.support.unet_run import call


@pytest.mark.parametrize("name", ["bone_age", "ensemble"])
def test_predictions_are_those_of_the_run(published, name):
    before = boneage_jax.load_predictor(OLD / name)(IMAGES, male=[1, 0, -1])
    after = boneage_jax.load_predictor(published / f"tiny_{name}")(IMAGES, male=[1, 0, -1])
    assert before.keys() == after.keys()
    for key, values in before.items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(after[key], values, rtol=2e-3, err_msg=key)
        else:
            assert (after[key] == values).all()
    ages = [found["bone_age_months"] for found in (before, after)]
    assert 0 < np.abs(ages[0] - ages[1]).max() < 0.1  # rounded, and but little


def test_flops_and_steps_of_the_training_are_kept(published):
    for name in ("bone_age", "ensemble", "unet"):
        before, after = load_members(OLD / name), load_members(published / f"tiny_{name}")
        assert [(m.flops_spent, m.step) for m in before] == [(m.flops_spent, m.step) for m in after]
    first = load_trained(OLD / "ensemble" / "members" / "0")
    found = load_trained(published / "tiny_ensemble")
    assert found.flops_spent == first.flops_spent
    expected = jax.tree.map(lambda x: np.float32(rounded(np.asarray(x))), first.variables)
    jax.tree.map(np.testing.assert_array_equal, found.variables, expected)


def test_masks_are_those_of_the_run(published, by_name_alone):
    before, after = (
        boneage_jax.load_segmenter(source)(IMAGES) for source in (OLD / "unet", "tiny_unet")
    )
    for old, new in zip(before, after, strict=True):
        assert (old.mask == new.mask).mean() > 0.99
    assert len(boneage_jax.load_segmenter()(IMAGES)) == 3
    by_name = Background("tiny_unet", "multiply")(IMAGES[0], "", 96)
    np.testing.assert_array_equal(by_name > 0, (after[0].mask & (IMAGES[0] > 0)))


def test_the_files_are_plain_and_hold_no_path_of_this_machine(published, tmp_path):
    """Read by safetensors itself and by sha256sum; no pickle, no place of the publisher's."""
    folder = published / "tiny_ensemble"
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


def test_predict_for_a_person_and_as_json(by_name_alone, tmp_path, capsys):
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
    assert call(publish, *options, "--output=other", "--raw_dir=nowhere") == 2
    (tmp_path / "mine.part").mkdir()
    (tmp_path / "mine.part" / "notes").write_text("precious")
    assert call(publish, *options, "--output=mine") == 0
    assert (tmp_path / "mine.part" / "notes").read_text() == "precious"
    names = ["mine", "mine.part", "out", "terms.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_a_published_network_is_evaluated_elsewhere(published, phantoms, tmp_path, capsys):
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


def test_a_network_that_is_calibrated_to_a_site_says_so(published, tmp_path, monkeypatch):
    """On its card, in the list, and in what is published of it; figures stay those before."""
    source, once, twice = published / "tiny_bone_age", tmp_path / "once", tmp_path / "twice"
    write_published(load_members(source), source, once, card=False, more={SITE: SITE_NOTE})
    write_published(load_members(once), once, twice)
    for folder in (once, twice):
        card = (folder / "README.md").read_text()
        assert card.count("**Calibrated** to 40 radiographs") == 1
        assert "age = 1.020 x age -3.0 months" in card and "9.00 months before" in card
        assert card.index("**Calibrated**") < card.index("## Use")
        assert read_json(folder / SITE) == SITE_NOTE
    monkeypatch.setenv("BONEAGE_JAX_WEIGHTS", str(tmp_path))
    lines = network_table(shipped_networks())
    assert all("before its calibration" in line for line in lines if "once" in line)
    with pytest.raises(boneage_jax.InputError, match="calibrated to a site, and evaluations"):
        write_published(load_members(once), once, tmp_path / "no", evaluations=[tmp_path / "r"])


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

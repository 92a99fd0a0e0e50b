"""Damaged run folders: one line that names the file, and nothing changed."""

import io
import json
import os
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest

import boneage_jax
from boneage_jax.data.mask_cost import read_note
from boneage_jax.errors import InputError
from boneage_jax.evaluation.evaluate_run import evaluate
from boneage_jax.inference.calibration import Calibration
from boneage_jax.inference.load_trained import load_members
from boneage_jax.report.metric_writer import read_metrics
from boneage_jax.storage.layout import LOCK

NAN = float("nan")
NOWHERE = "/dev/null/data"  # no data can be opened or prepared there
OLD = Path(__file__).parents[1] / "inference" / "old_workdirs"


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Place of the finished run that each case damages a copy of."""
    return tmp_path_factory.mktemp("kept") / "run"


@pytest.fixture
def train(kept, tiny_train, tmp_path):
    """Trains in a copy of a finished run of two steps, which the first test makes."""
    if not kept.exists():
        tiny_train(kept.name, folder=kept.parent, steps=2)
    shutil.copytree(kept, tmp_path / "run", symlinks=True)
    return lambda **changed: tiny_train("run", steps=2, **changed)


def files(folder):
    """Every file with its content; the lock may appear."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if path.name != LOCK
    }


def put(path, content):
    """Replaces a file by a text, by a folder (None) or by nothing ("gone")."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    if content is None:
        path.mkdir()
    elif content != "gone":
        path.write_text(content)


def facts(**changed):
    before = {"image_size": 64, "train_images": 96, "age_mean": 107.1, "age_std": 63.5}
    return json.dumps(before | changed)


CUT = '{"age": {"mae": 12.3, "mae_l'
REPORT = json.dumps({"dataset": {}, "compute": {}, "config": {}, "curve": []})
WRONG = {
    "report.json": [
        "",
        CUT,
        "not JSON",
        "null",
        "[]",
        "3",
        "[" * 100_000,
        None,
        REPORT,
    ],
    "metrics.jsonl": [None, "\n\n", '{"step": 1}\n{"step": -1}\n{"step": 2}\n', "[]\nnull\n{}\n"],
    "config.json": ["gone", "", "null", "[]", None, '{"batch_size": NaN}'],
    "facts.json": ["gone", "", "null", "[]", None, "{}", facts(age_mean=NAN), facts(age_std=0)],
    "checkpoints": ["a file"],
}


@pytest.mark.parametrize(
    ("name", "content"), [(name, content) for name, all_ in WRONG.items() for content in all_]
)
def test_a_training_refuses_a_damaged_folder(name, content, train, tmp_path):
    workdir = tmp_path / "run"
    put(workdir / name, content)
    if name == "metrics.jsonl":  # read where the run goes on, or reports anew
        put(workdir / "report.json", "gone")
    before = files(workdir)
    with pytest.raises(InputError) as error:
        train()
    line = str(error.value)
    assert name in line and "\n" not in line and len(line) < 1000
    assert files(workdir) == before


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(("facts.json", wrong) for wrong in WRONG["facts.json"]),
        ("facts.json", facts(image_size=96)),  # disagrees with data.config
        ("facts.json", facts(image_size=2**31)),
        ("facts.json", facts(image_size=True)),
        ("facts.json", facts(age_std="wide")),
        ("facts.json", facts(age_mean=100.0)),  # disagrees with the checkpoint
        *(("config.json", wrong) for wrong in WRONG["config.json"]),
        ("config.json", '{"seed": -1}'),
        ("checkpoints/2", "gone"),
        ("checkpoints/2", "a file"),
        ("checkpoints/2", None),
        ("checkpoints/2/state", "gone"),
        *(("checkpoints/2/_CHECKPOINT_METADATA", wrong) for wrong in ("null", "[]", '{"a', "")),
        ("checkpoints", "gone"),
        ("checkpoints", "a file"),
        ("checkpoints", None),
    ],
)
def test_a_prediction_refuses_a_damaged_folder(name, content, train, tmp_path):
    workdir = tmp_path / "run"
    put(workdir / name, content)
    before = files(workdir)
    with pytest.raises(InputError) as error:
        load_members(workdir)
    assert name.split("/")[0] in str(error.value) and "\n" not in str(error.value)
    assert files(workdir) == before


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("config.json", load_members),
        ("facts.json", load_members),
        ("metrics.jsonl", read_metrics),
        ("calibration.npz", lambda run: Calibration.load(run / "calibration.npz")),
        ("background.json", read_note),
    ],
)
def test_a_pipe_in_place_of_a_file_is_not_waited_for(name, read, train, tmp_path):
    path = tmp_path / "run" / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    with pytest.raises(InputError, match=rf"{re.escape(name)} is (not a file|damaged \(is not)"):
        read(tmp_path / "run")


def test_a_checkpoint_beyond_the_end_is_refused(train, tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    (folder / "2").rename(folder / "99999999999999999999")
    with pytest.raises(InputError, match="step 99999999999999999999, this run ends at step 2"):
        train()


def test_a_checkpoint_under_another_step_is_refused(train, tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    (folder / "2").rename(folder / "1")
    for read in (train, lambda: load_members(tmp_path / "run")):
        with pytest.raises(InputError, match="checkpoints/1 is the checkpoint of step 2; rename"):
            read()


@pytest.mark.parametrize("key", ["normalize", "loss.standardize", "model.padding"])
def test_a_config_that_no_shape_contradicts_is_that_of_the_checkpoint(key, train, tmp_path):
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text())
    section, _, name = key.rpartition(".")
    target = config[section] if section else config
    target[name] = {"zscore": "none", "same": "symmetric", True: False}[target[name]]
    path.write_text(json.dumps(config))
    with pytest.raises(InputError, match=rf"config\.json has {key}=.*was trained with"):
        load_members(tmp_path / "run")


@pytest.mark.parametrize("key", ["checksums", "info", "config"])
def test_notes_of_a_checkpoint_that_are_no_object_are_refused(key, train, tmp_path):
    path = tmp_path / "run" / "checkpoints" / "2" / "_CHECKPOINT_METADATA"
    notes = json.loads(path.read_text())
    notes["custom_metadata"][key] = [1]
    path.write_text(json.dumps(notes))
    with pytest.raises(InputError, match="checkpoints/2 cannot be restored"):
        load_members(tmp_path / "run")


def test_a_log_is_read_before_data_are_opened(train, tmp_path):
    (tmp_path / "run" / "metrics.jsonl").write_text("[]\nnull\n{}\n")
    with pytest.raises(InputError, match=r"metrics\.jsonl, line 1"):
        evaluate(tmp_path / "run", data_dir=NOWHERE)


def test_an_evaluation_that_cannot_be_written_compiles_nothing(train, tmp_path, phantoms, caplog):
    (tmp_path / "run" / "evaluation").touch()
    with jax.log_compiles(), pytest.raises(InputError, match=r"evaluation.* cannot be written"):
        evaluate(tmp_path / "run", data_dir=phantoms)
    assert not [line for line in caplog.messages if "ompil" in line]


def test_an_unknown_split_is_refused_before_anything_is_loaded(train, tmp_path):
    put(tmp_path / "run" / "checkpoints", "gone")
    with pytest.raises(InputError, match="split='' must be the name of a split"):
        evaluate(tmp_path / "run", "", data_dir=NOWHERE)
    for split in ("nope", "../train"):
        with pytest.raises(InputError, match="it has test, train, validation"):
            evaluate(tmp_path / "run", split, data_dir=NOWHERE)


def test_a_changed_recipe_is_refused_before_data_are_prepared(train, tmp_path):
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["data"]["data_dir"], config["seed"] = NOWHERE, 5
    with pytest.raises(InputError, match="another config"):
        boneage_jax.train(config, tmp_path / "run")


@pytest.mark.parametrize("phantoms", [NOWHERE])  # the data_dir of tiny_train
@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"model__name": "efficientnet_b9"}, "unknown model"),
        ({"model__options": {"width": 3}}, "unknown option 'width' of tiny"),
        ({"model__options": {"name": "x"}}, "options.name is no option of tiny"),
        ({"optimizer__weight_decay": 0.1}, "weight_decay needs adamw or lion"),
        ({"augment__rotate": 80.0, "augment__resample": "matmul"}, "resample='matmul' needs"),
        ({"augment__extra": "snow"}, "unknown augmentation"),
        ({"finetune__last_blocks": 3}, "finetune"),
        (
            {"progressive__sizes": "32,48", "progressive__fractions": "0.5,0.5"},
            "the network reads, 64",
        ),
        ({"batch_size": 9, "accumulate": 2}, "batch_size=9 does not divide"),
        ({"model__name": "tiny_unet"}, "tiny_unet with .*bone_age fails: TypeError: .*image_keys"),
        ({"task": "hand_mask"}, "tiny with .*hand_mask fails: TypeError: cannot reshape"),
        ({"pretrain__data": "/", "pretrain__steps": 1}, "unknown data set ''"),
        ({"pretrain__data": "hand_phantom/9", "pretrain__steps": 1}, "has no config '9'"),
        ({"data__name": "nix"}, "unknown data set 'nix'"),
        ({"init_from": "/no/such/run"}, r"config\.init_from: .*holds no run"),
        ({"init_from": f"{OLD}/unet"}, "holds a run of task 'hand_mask', not 'bone_age'"),
        ({"init_from": f"{OLD}/ensemble"}, "ensemble; name one of it"),
        ({"init_from": f"{OLD}/bone_age", "model__hidden": 3}, "holds another network"),
        ({"data__eval_split": "validatoin"}, "eval_split='validatoin': .*has the splits train,"),
        ({"data__name": "rsna_bone_age", "data__config": "original"}, "training needs one size"),
        ({"pretrain__data": "rsna_bone_age/256", "pretrain__steps": 1}, "is not prepared: python"),
        ({"model__name": "efficientnet_b0", "model__pretrained": "hf:a"}, "hf:OWNER/REPO"),
        (
            {"data__name": "rsna_bone_age", "data__config": "256", "task": "hand_mask"},
            "task=hand_mask needs mask; rsna_bone_age has bone_age",
        ),
        ({"model__name": "efficientnet_b0", "model__pretrained": "/no.pth"}, "is not there"),
    ],
)
def test_wrong_values_are_refused_before_data_are_prepared(changed, says, tiny_train, tmp_path):
    with pytest.raises(InputError, match=says):
        tiny_train(**changed)


def test_a_dict_is_taken_for_a_config_and_a_second_training_refused(train, tmp_path):
    report, workdir = train()
    config = json.loads((workdir / "config.json").read_text())
    assert boneage_jax.train(config, str(workdir))["age"] == report["age"]
    with (workdir / LOCK).open() as file:
        held = subprocess.Popen(["flock", "/dev/fd/0", "sleep", "60"], stdin=file)
        try:
            while True:
                try:
                    boneage_jax.train(config, workdir)
                except InputError as error:
                    assert "is in use: process" in str(error)
                    break
        finally:
            held.kill()
            held.wait()


def npz(**changed):
    """A calibration with some arrays changed, or left out (None)."""
    arrays = {
        "half_width": np.float64(9.0),
        "mean": np.zeros(10),
        "precision": np.eye(10),
        "max_distance": np.float64(3.0),
    }
    file = io.BytesIO()
    np.savez(file, **{k: v for k, v in (arrays | changed).items() if v is not None})
    return file.getvalue()


def absurd():
    """Three numbers whose header promises 2^40."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "<f8", "fortran_order": False, "shape": (2**40,)}
    )
    archive = io.BytesIO(npz(mean=None))
    with zipfile.ZipFile(archive, "a") as members:
        members.writestr("mean.npy", file.getvalue() + bytes(24))
    return archive.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK not a zip",
        npz()[:-30],
        npz(half_width=np.float64(NAN)),
        npz(half_width=np.float64(-1)),
        npz(mean=np.full(10, NAN)),
        npz(mean=np.zeros(9)),
        npz(mean=None),
        npz(precision=np.zeros((10, 10), object)),
        npz(precision=np.array([["a"] * 10] * 10)),
        npz(slope=np.float64(NAN), intercept=np.float64(0)),
        npz(half_width=np.zeros(3)),
        npz(youngest=np.float64(200), oldest=np.float64(1)),
        npz(youngest=np.float64(1), oldest=np.float64(np.inf)),
        npz(half_width=np.float64(1e300)),
        npz(images=np.float64(0.5)),
        npz(precision=np.zeros((10, 10))),
        npz(precision=-np.eye(10)),
        npz(more=np.zeros(2**17 + 1)),
        absurd(),
    ],
)
def test_a_damaged_calibration_is_one_line(content, tmp_path):
    path = tmp_path / "calibration.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"calibration\.npz is damaged") as error:
        Calibration.load(path)
    assert "\n" not in str(error.value)


def test_a_sound_calibration_is_read_as_written(tmp_path):
    path = tmp_path / "calibration.npz"
    path.write_bytes(npz())
    read = Calibration.load(path)
    read.save(tmp_path / "again.npz")
    again = Calibration.load(tmp_path / "again.npz")
    assert (read.half_width, read.correction) == (again.half_width, again.correction)
    np.testing.assert_array_equal(read.precision, again.precision)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.npz", "calibration.npz"]

"""The command: what it writes and prints, and one line for what it cannot do."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import jax
import pytest

from boneage_jax import export
from boneage_jax.errors import InputError
from boneage_jax.exporting import export_run, onnx_graph
from tests.exporting.conftest import age_network, shipped_view
from tests.support.unet_run import call

onnx = pytest.importorskip("onnx")
pytest.importorskip("jax2onnx")
if not jax.__version__.startswith("0.10."):
    pytest.skip("jax2onnx needs jax 0.10", allow_module_level=True)


def test_onnx_of_radiographs(workdirs, radiographs, tmp_path, capsys):
    output = tmp_path / "net.onnx"
    arguments = (f"--workdir={workdirs / 'ensemble'}", "--format=onnx", f"--output={output}")
    assert call(export, *arguments, radiographs / "images") == 0
    onnx.checker.check_model(onnx.load(output))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{output}: ") and "uint8 [batch, 64, 64, 1]" in lines[0]
    assert "months at most" in lines[1] and "24 of the radiographs given" in lines[1]


def test_what_a_file_leaves_out_is_said(tmp_path):
    """Cut-outs have less resolution than those of `predict`; with --prepared there are none."""
    program = age_network(tmp_path, view=shipped_view(), model__name="tiny")
    request = export_run.Request("", tmp_path / "out")
    whole, prepared, page = (
        export_run.FORMATS[form](network, request)[1][-1]
        for network, form in (
            (program, "stablehlo"),
            (program.prepared(), "stablehlo"),
            (program, "web"),
        )
    )
    assert "put right inside, as squares: cut-outs have the resolution of 64" in whole
    assert "are not put right" in prepared and "put right" not in page
    assert "puts_right" in program.metadata and "puts_right" not in program.prepared().metadata


def test_stablehlo_has_its_texts_beside_it(workdirs, tmp_path, capsys):
    output = tmp_path / "net.stablehlo"
    arguments = (f"--workdir={workdirs / 'bone_age'}", "--format=stablehlo", f"--output={output}")
    assert call(export, *arguments) == 0
    found = json.loads((tmp_path / "net.stablehlo.json").read_text())
    report = json.loads((workdirs / "bone_age" / "report.json").read_text())
    assert f"{report['age']['mae']:.2f} months" in found["validation_error"]
    away = re.search(r"differs from the network by (\S+) months", capsys.readouterr().out)
    assert float(away[1]) < 1e-4


def test_a_radiograph_is_not_replaced(workdirs, radiographs, tmp_path, capsys):
    """Some have no suffix."""
    hand = Path(shutil.copy(radiographs / "images" / "hand00.png", tmp_path / "hand"))
    before = hand.read_bytes()
    options = (f"--workdir={workdirs / 'bone_age'}", "--format=onnx", f"--output={hand}")
    assert call(export, *options, hand) == 2
    assert f"--output={hand} names an input" in capsys.readouterr().err
    assert hand.read_bytes() == before


def test_a_folder_without_room_is_named(ages, monkeypatch):
    def full(*args, **options):
        raise RuntimeError("Protobuf serialization failed")

    monkeypatch.setattr("onnxruntime.InferenceSession", full)
    with pytest.raises(InputError, match=r"serialization failed\); if there is no room.* TMPDIR"):
        onnx_graph.to_onnx(ages)


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"format": "keras"}, "--format=keras must be one of onnx, stablehlo, web"),
        ({"precision": "int4"}, "--precision=int4 must be one of float32, float16, int8"),
        ({"format": "stablehlo", "precision": "int8"}, "--precision is of --format=onnx alone"),
        ({"output": "no/folder/net.onnx"}, "there is no folder no/folder"),
        ({"output": "."}, "--output=. is a folder; name a file"),
        ({"output": "/proc/net.onnx"}, "/proc cannot be written"),
        ({"output": "hand.png"}, "--output=hand.png is the name of an image"),
        ({"workdir": "nowhere"}, "nowhere"),
    ],
)
def test_refused_in_one_line(changed, line, workdirs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = {"workdir": workdirs / "bone_age", "format": "onnx", "output": "net.onnx"} | changed
    assert call(export, *(f"--{key}={value}" for key, value in given.items())) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ") and line in text and text.count("\n") == 1
    assert not (tmp_path / "net.onnx").exists()


@pytest.mark.parametrize("name", ["bone_age", "unet"])
def test_unfinished_training(name, workdirs, tmp_path, capsys):
    copy = shutil.copytree(workdirs / name, tmp_path / "run")
    for file in ("report.json", "calibration.npz"):
        (copy / file).unlink(missing_ok=True)
    output = f"--output={tmp_path / 'net.onnx'}"
    assert call(export, f"--workdir={copy}", "--format=onnx", output) == 2
    assert "is missing: the training in this workdir has not ended" in capsys.readouterr().err


def test_missing_package_names_the_extra(workdirs, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(export_run._PACKAGES, "onnx", ("a_package_that_is_not_there",))
    output = f"--output={tmp_path / 'net.onnx'}"
    assert call(export, f"--workdir={workdirs / 'bone_age'}", "--format=onnx", output) == 2
    assert "pip install 'boneage_jax[export]'" in capsys.readouterr().err


def test_a_jax_that_the_converter_does_not_know(workdirs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jax, "__version__", "0.12.0")
    output = f"--output={tmp_path / 'net.onnx'}"
    assert call(export, f"--workdir={workdirs / 'bone_age'}", "--format=onnx", output) == 2
    said = capsys.readouterr().err
    assert "needs jax 0.10, as jax2onnx does, not 0.12.0" in said and said.count("\n") == 1


def test_int8_is_not_fitted_on_drawn_hands(ages, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    config = ages.network.config.copy_and_resolve_references()
    config.data.update(name="rsna_bone_age", config="64", data_dir="")
    real = dataclasses.replace(ages, network=dataclasses.replace(ages.network, config=config))
    request = export_run.Request("", tmp_path / "net.onnx", "int8")
    with pytest.raises(InputError, match="fitted on radiographs"):
        export_run.FORMATS["onnx"](real, request)


def test_page_refuses_what_it_cannot_show(ages, masks, tmp_path):
    info = dataclasses.replace(ages.network.info, background="multiply")
    bare = dataclasses.replace(ages, network=dataclasses.replace(ages.network, info=info))
    request = export_run.Request("", tmp_path / "page.html")
    for program, line in ((masks, "shows bone ages"), (bare, "without background")):
        with pytest.raises(InputError, match=line):
            export_run.FORMATS["web"](program, request)

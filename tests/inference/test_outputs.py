"""What `predict` writes beside its table: pages and DICOM objects of each radiograph."""

import csv
import html.parser

import cv2
import numpy as np
import pydicom
import pytest

import boneage_jax
import tests.support.tiny_backbone  # noqa: F401  (registers the network)
from boneage_jax import predict
from boneage_jax.data.dicom_header import read_patient
from boneage_jax.errors import InputError
from boneage_jax.inference.background_removal import Background
from boneage_jax.inference.dicom_output import DicomOutput
from boneage_jax.inference.nearest import References
from boneage_jax.inference.output_names import open_folder, output_names
from boneage_jax.inference.outputs import Outputs, Reading
from boneage_jax.inference.patients import Patient, identify
from boneage_jax.report.radiograph_page import age_in_words
from tests.inference.test_predictor import IMAGES, WORKDIR
from tests.support.dciodvfy import verdict
from tests.support.dicom_files import dicom_file
from tests.support.unet_run import call

UNET = WORKDIR.parent / "unet"
STUDY = {
    **{"StudyInstanceUID": "1.2.3.4", "SeriesInstanceUID": "1.2.3.5", "PatientName": "SECRET^NAME"},
    **{"PatientSex": "M", "PatientAge": "120M", "Modality": "CR"},
}


@pytest.fixture
def folder(tmp_path):
    inputs = tmp_path / "in"
    inputs.mkdir()
    (inputs / "hand.dcm").write_bytes(dicom_file(IMAGES[0], **STUDY))
    (inputs / "lost.dcm").write_bytes(dicom_file(IMAGES[0], PatientName="SECRET^NAME"))
    (inputs / "cut.dcm").write_bytes(dicom_file(IMAGES[0], **STUDY)[:700])
    cv2.imwrite(str(inputs / "<b>.png"), IMAGES[1])
    return tmp_path


class Page(html.parser.HTMLParser):
    """Addresses and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.addresses, self.words, self.tags = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.words.append(data.strip())


def test_each_radiograph_has_its_files_and_a_bad_one_costs_only_its_own(folder, capsys):
    pytest.importorskip("highdicom", reason="highdicom is not installed (extra 'dicom')")
    outputs = [f"--{name}={folder / name}" for name in ("dicom_out", "report")]
    table = folder / "ages.csv"
    arguments = [f"--workdir={WORKDIR}", f"--output={table}", f"--masks={UNET}", *outputs]
    assert call(predict, *arguments, folder / "in") == 0
    with table.open() as file:
        rows = {row["file"].rpartition("/")[2]: row for row in csv.DictReader(file)}
    assert rows["cut.dcm"]["error"]
    assert "no DICOM output: the file is not DICOM" in rows["<b>.png"]["note"]
    assert "no DICOM output: the header lacks StudyInstanceUID" in rows["lost.dcm"]["note"]
    assert "no DICOM output" not in rows["hand.dcm"]["note"]
    kinds = {path.name for path in (folder / "dicom_out").iterdir()}
    assert {"hand_sr.dcm", "hand_sc.dcm"} <= kinds <= {f"hand_{k}.dcm" for k in ("sr", "sc", "seg")}
    for path in (folder / "dicom_out").iterdir():
        assert not [line for line in verdict(path) if line.startswith("Error")]
    capture = pydicom.dcmread(folder / "dicom_out" / "hand_sc.dcm")
    assert capture.pixel_array.std() > 10 and capture.PatientName == "SECRET^NAME"
    assert {path.name for path in (folder / "report").iterdir()} == {
        *("hand.html", "lost.html", "<b>.html")
    }
    page = Page((folder / "report" / "hand.html").read_text())
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert "script" not in page.tags and "link" not in page.tags
    age = float(rows["hand.dcm"]["bone_age_months"])
    # The table has four digits.
    assert {age_in_words(age - 0.05), age_in_words(age + 0.05)} & {*page.words}
    assert {"mirrored", "turned by -10°", "male", "10 y 0 mo (120.0 months)"} <= {*page.words}
    (difference,) = [word for word in page.words if word.endswith(" months") and word[0] in "+-"]
    assert float(difference.split()[0]) == pytest.approx(age - 120, abs=0.2)
    assert "<b>.png" in Page((folder / "report" / "<b>.html").read_text()).words
    said = capsys.readouterr()
    assert "SECRET" not in said.out + said.err


def test_masks_in_dicom_are_those_of_the_package_unless_others_are_named(folder):
    pytest.importorskip("highdicom", reason="highdicom is not installed (extra 'dicom')")
    outputs = [f"--output={folder / 'x.csv'}", f"--dicom_out={folder / 'objects'}"]
    assert call(predict, f"--workdir={WORKDIR}", *outputs, folder / "in" / "hand.dcm") == 0
    mask = pydicom.dcmread(folder / "objects" / "hand_seg.dcm")
    assert (mask.Rows, mask.Columns) == pydicom.dcmread(
        folder / "in" / "hand.dcm"
    ).pixel_array.shape


def test_a_radiograph_that_was_put_right_has_no_mask(folder):
    """The mask would be that of the file as it is, in which a U-Net finds a part of the hand."""
    pytest.importorskip("highdicom", reason="highdicom is not installed (extra 'dicom')")
    file = folder / "in" / "hand.dcm"
    predictor = boneage_jax.load_predictor(WORKDIR)
    masks = Background(UNET, "multiply")
    output = DicomOutput(folder / "objects", [file], predictor, "tiny", masks=masks)
    values = {key: rows[0] for key, rows in predictor([file]).items()}
    patient = identify(-1, read_patient(file), sex_matters=True)
    for notes, kinds in (
        (("turned by 90 degrees: put upright",), {"sr", "sc"}),
        (("inverted: grey levels swapped",), {"sr", "sc"}),
        (("white frame: cut off",), {"sr", "sc", "seg"}),
    ):
        numbers = {key: values[key] for key in predictor.columns}
        note = output.add(Reading(file, numbers, patient, {}, notes))
        assert ("no DICOM mask: it would be" in note) is (len(kinds) == 2)
        assert {path.stem.removeprefix("hand_") for path in (folder / "objects").iterdir()} == kinds


def test_a_file_is_no_folder_for_output(folder, capsys):
    file = folder / "in" / "hand.dcm"
    arguments = [f"--workdir={WORKDIR}", f"--output={folder / 'x.csv'}", f"--report={file}", file]
    assert call(predict, *arguments) == 2
    assert f"--report={file} is a file; name a folder" in capsys.readouterr().err


def test_options_are_checked_first(folder, capsys, monkeypatch):
    arguments = [f"--workdir={folder / 'none'}", f"--output={folder / 'x.csv'}", folder / "in"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert call(predict, *arguments, f"--dicom_out={folder / 'out'}") == 2
    assert "--dicom_out needs pip install 'boneage_jax[dicom]'" in capsys.readouterr().err


def test_folders_of_radiographs_take_no_output(folder):
    files = [folder / "in" / "hand.dcm"]
    with pytest.raises(InputError, match="holds the radiographs themselves"):
        open_folder(folder / "in", files, "--report")
    open_folder(folder / "new" / "below", files, "--report")
    assert (folder / "new" / "below").is_dir()


def test_names_of_outputs_are_unique(tmp_path):
    names = ("a/hand.png", "b/hand.dcm", "b/HAND.png", "c/hand-2.png", "1.2.840.1")
    files = [tmp_path / name for name in names]
    assert [*output_names(files).values()] == ["hand", "hand-2", "HAND-3", "hand-2-2", "1.2.840.1"]


@pytest.mark.parametrize(
    ("error", "note"),
    [
        (InputError("it has no mask"), "no page: it has no mask"),
        (ValueError("SECRET^NAME"), "no page: its header does not allow it (ValueError)"),
        (OSError(28, "No space left on device"), None),
    ],
)
def test_an_output_that_fails(tmp_path, error, note):
    class Page:
        name = "page"

        def add(self, reading):
            raise error

    outputs = Outputs(others=[Page()])
    arguments = (tmp_path / "a.png", {"bone_age_months": np.float32(1)}, "small", Patient())
    if note:
        assert outputs.add(*arguments) == ({}, f"small; {note}")
    else:
        with pytest.raises(InputError, match=r"page of .*a\.png cannot be written: No space"):
            outputs.add(*arguments)


def test_ages_in_words():
    assert [age_in_words(months) for months in (0, 11.6, 123.4)] == [
        *("0 y 0 mo", "1 y 0 mo", "10 y 3 mo")
    ]


class FewFeatures:
    """A predictor of files named by their features; one file cannot be read."""

    def batches(self, files, male, features):
        assert features and len(male) == len(files)
        for file in files:
            if file.stem == "bad":
                yield [InputError("bad")], {}
            else:
                row = np.array([[float(part) for part in file.stem.split("_")]], np.float32)
                yield [""], {"features": row, "bone_age_months": row[:, 0]}


def test_the_nearest_references(tmp_path):
    names = ("0_0", "2_0", "4_0", "bad", "0_10")
    for name in names:
        (tmp_path / f"{name}.png").write_bytes(b"")
    references = References(tmp_path, FewFeatures())
    found = references.nearest(tmp_path / "2_0.png", np.array([2, 0], np.float32), count=3)
    # Deviations of the features: sqrt(2.75), which is below the mean, and sqrt(18.75).
    scale = np.array([np.sqrt([2.75, 18.75]).mean(), np.sqrt(18.75)])
    points = np.array([[0, 0], [2, 0], [4, 0], [0, 10]]) / scale
    pairs = [np.sum((points[a] - points[b]) ** 2) for a in range(4) for b in range(a)]
    expected = np.linalg.norm(points - points[1], axis=1) / np.sqrt(np.mean(pairs))
    assert [near.file.stem for near in found] == ["0_0", "4_0", "0_10"]
    assert [near.distance for near in found] == pytest.approx(expected[[0, 2, 3]])
    assert [near.age for near in found] == [0, 4, 0]
    with pytest.raises(InputError, match="fewer than two radiographs"):
        (tmp_path / "one").mkdir()
        (tmp_path / "one" / "1_1.png").write_bytes(b"")
        References(tmp_path / "one", FewFeatures())

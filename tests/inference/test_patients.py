"""`predict` on DICOM files: sex and age of the header, scores, features."""

import csv

import cv2
import numpy as np
import pytest

from boneage_jax import predict
from boneage_jax.inference.patients import FROM_HEADER, SEXES_DIFFER
from tests.inference.test_predictor import IMAGES, WORKDIR
from tests.support.dicom_files import dicom_file
from tests.support.unet_run import call

NAMES = ("boy", "girl", "unknown", "table")


@pytest.fixture
def folder(tmp_path):
    """The same radiograph of a boy, of a girl, of nobody known, and of a boy said to be a girl."""
    tags = {"PatientName": "SECRET^NAME", "PatientAge": "120M", "PixelSpacing": [0.2, 0.1]}
    for name, sex in zip(NAMES, ("M", "F", "", "F"), strict=True):
        data = dicom_file(IMAGES[0], PatientSex=sex, **tags)
        (tmp_path / f"{name}.dcm").write_bytes(data)
    (tmp_path / "sexes.csv").write_text("id,male\ntable,1\n")
    (tmp_path / "ref.csv").write_text("sex,age_months,mean,sd\nM,0,0,10\nM,240,240,10\n")
    return tmp_path


def predicted(folder, *options, status=0):
    output = folder / "ages.csv"
    assert call(predict, f"--workdir={WORKDIR}", f"--output={output}", *options) == status
    with output.open() as file:
        return {row["file"].rpartition("/")[2].split(".")[0]: row for row in csv.DictReader(file)}


def test_sex_and_age_come_from_the_header(folder, capsys):
    table, reference = f"--sex_csv={folder / 'sexes.csv'}", f"--reference={folder / 'ref.csv'}"
    rows = predicted(folder, table, reference, *(folder / f"{name}.dcm" for name in NAMES))
    assert [*next(iter(rows.values()))][6:] == [
        *("error", "note", "sex", "chronological_age_months", "difference_months", "laterality"),
        *("pixel_spacing_mm", "sd_score"),
    ]
    ages = {name: float(row["bone_age_months"]) for name, row in rows.items()}
    assert ages["boy"] == ages["table"] != ages["girl"]
    assert [rows[name]["sex"] for name in NAMES] == ["M", "F", "", "M"]
    notes = {name: row["note"].split("; ") for name, row in rows.items()}
    assert FROM_HEADER in notes["boy"] and FROM_HEADER in notes["girl"]
    assert FROM_HEADER not in notes["unknown"] + notes["table"]
    assert SEXES_DIFFER in notes["table"]
    assert "no sd_score: the sex is unknown" in notes["unknown"]
    for name, row in rows.items():
        assert float(row["difference_months"]) == pytest.approx(ages[name] - 120, abs=0.1)
        assert (row["chronological_age_months"], row["pixel_spacing_mm"]) == ("120", "0.2 0.1")
    # The mean of the reference is the age itself.
    assert float(rows["boy"]["sd_score"]) == pytest.approx((ages["boy"] - 120) / 10, abs=0.01)
    assert rows["girl"]["sd_score"] == "" and "beyond the reference" in rows["girl"]["note"]
    said = capsys.readouterr()
    assert "SECRET" not in said.out + said.err


def test_features_are_written(folder, capsys):
    cv2.imwrite(str(folder / "mirror.png"), IMAGES[0][:, ::-1])
    (folder / "bad.png").write_bytes(b"no image")
    images = [folder / name for name in ("bad.png", "boy.dcm", "girl.dcm", "mirror.png")]
    rows = predicted(folder, f"--features={folder / 'f.npz'}", *images)
    with np.load(folder / "f.npz", allow_pickle=False) as found:
        files, features = found["files"], found["features"]
    assert files.tolist() == [str(image) for image in sorted(images[1:])]
    assert features.dtype == np.float32 and features.shape[0] == 3
    assert features.std() > 0
    np.testing.assert_array_equal(features[0], features[1])  # the sex is no part of them
    assert rows["bad"]["error"] and rows["boy"]["chronological_age_months"] == "120"
    assert call(predict, f"--workdir={WORKDIR}", f"--output={folder / 'x.csv'}",
                f"--features={folder / 'f.csv'}", images[1]) == 2  # fmt: skip
    assert "--features" in capsys.readouterr().err


def test_features_of_an_ensemble_lie_side_by_side(folder):
    both, ensemble = folder / "both.npz", WORKDIR.parent / "ensemble"
    single = [folder / f"{member}.npz" for member in (0, 1)]
    for workdir, target in (
        (ensemble, both),
        (ensemble / "members" / "0", single[0]),
        (ensemble / "members" / "1", single[1]),
    ):
        arguments = [f"--workdir={workdir}", f"--output={folder / 'x.csv'}"]
        assert call(predict, *arguments, f"--features={target}", folder / "boy.dcm") == 0
    parts = [np.load(path)["features"] for path in single]
    np.testing.assert_allclose(np.load(both)["features"], np.concatenate(parts, 1), rtol=1e-5)

"""A StableHLO file reads what `predict` reads, in a process without this package."""

import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("flatbuffers")

from boneage_jax.exporting.stablehlo import reader, to_stablehlo


@pytest.fixture(scope="module")
def content(ages):
    return to_stablehlo(ages)


def test_equals_predict(content, ages, squares):
    male = np.arange(len(squares)) % 3 - 1
    image = np.stack(squares)[..., None]
    found = reader(content)(image, male.astype(np.int32))
    wanted = ages.read(squares, male)
    for name in ages.outputs:
        np.testing.assert_allclose(found[name], wanted[name], atol=1e-4)


def test_a_code_that_is_no_sex_is_an_unknown_one(content, squares):
    """2 is female in many tables, and would be twice as male as 1."""
    image, program = np.stack(squares[:2])[..., None], reader(content)
    unknown = program(image, np.full(2, -1, np.int32))["bone_age_months"]
    for code in (2, 9, -7):
        found = program(image, np.full(2, code, np.int32))["bone_age_months"]
        np.testing.assert_array_equal(found, unknown)
    assert np.abs(program(image, np.ones(2, np.int32))["bone_age_months"] - unknown).max() > 0


def test_read_without_the_package(content, ages, squares, tmp_path):
    """The reader of docs/export.md, in an interpreter that cannot import boneage_jax."""
    (tmp_path / "net.stablehlo").write_bytes(content)
    np.save(tmp_path / "image.npy", np.stack(squares)[..., None])
    lines = (
        "import jax.export, numpy as np",
        "program = jax.export.deserialize(bytearray(open('net.stablehlo', 'rb').read()))",
        "image = np.load('image.npy')",
        "found = program.call(image, np.full(len(image), -1, np.int32))",
        "import sys; assert 'boneage_jax' not in sys.modules",
        "print(*program.platforms, *np.asarray(found['bone_age_months']).tolist())",
    )
    text = subprocess.run(
        [sys.executable, "-P", "-c", "\n".join(lines)],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    assert text[:3] == ["cpu", "cuda", "tpu"]
    wanted = ages.read(squares, [-1] * len(squares))["bone_age_months"]
    np.testing.assert_allclose([float(word) for word in text[3:]], wanted, atol=1e-3)

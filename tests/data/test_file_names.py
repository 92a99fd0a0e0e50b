"""Names of image files: what is a suffix, and the one form in which names are compared."""

import os
import unicodedata
from pathlib import PurePosixPath

import pytest

from boneage_jax.data.file_names import bare_name, image_stem, is_hidden, normal_name


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("1377.png", "1377"),
        ("Hand.PNG", "Hand"),
        ("case.01.tiff", "case.01"),
        ("1.2.826.0.1.3680043.9.7433.1000", "1.2.826.0.1.3680043.9.7433.1000"),
        ("1.2.826.0.1.3680043.9.7433.1000.dcm", "1.2.826.0.1.3680043.9.7433.1000"),
        ("IM000001", "IM000001"),
        ("MR.IMA", "MR"),
        ("hand.left", "hand.left"),
        ("two words .jpg", "two words "),
        (".png", ".png"),
    ],
)
def test_the_stem_of_a_name(name, stem):
    assert bare_name(PurePosixPath("folder.x", name)) == stem
    assert image_stem(PurePosixPath(name)) == stem


def test_names_of_macos_and_of_windows_are_compared_with_others():
    composed = "Händ é.png"
    assert unicodedata.normalize("NFD", composed) != composed
    assert normal_name(unicodedata.normalize("NFD", composed)) == composed
    latin = os.fsdecode(composed.encode("latin-1"))  # not UTF-8
    assert normal_name(latin) == composed
    assert normal_name(os.fsdecode(b"R\x81ntgen \x80")) == "R\x81ntgen €"
    assert normal_name(composed) == composed
    assert normal_name("\ud800.png").encode()  # from the JSON of a COCO file


@pytest.mark.parametrize(
    "name", [".DS_Store", "._7.png", "~$ages.xlsx", "Thumbs.db", "DICOMDIR", "__MACOSX", "@eaDir"]
)
def test_what_systems_add_is_hidden(name):
    assert is_hidden(name)
    assert not is_hidden(f"a{name}")

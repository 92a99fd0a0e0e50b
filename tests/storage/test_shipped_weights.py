"""The trained networks that come with the package."""

import hashlib
import tomllib
from pathlib import Path

import numpy as np
import pytest

import boneage_jax
from boneage_jax.inference.segmenter import load_segmenter
from boneage_jax.storage.shipped import best_network, shipped_networks
from configs.cls import SHIPPED
from tfds_rsna.hand_phantom.render import make_phantom

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "boneage_jax" / "weights"
NAMES = sorted(path.name for path in WEIGHTS.iterdir() if path.is_dir())

# What they read when they were published, jax 0.10.2 on a CPU, in months. Drawn hands are not what
# they were trained on.
AGES = {
    "rsna_lite0_224": [28.494, 151.948, 136.477],
    "rsna_lite0_256": [23.670, 117.015, 74.270],
    "rsna_lite2_256": [33.104, 164.350, 159.294],
}


def size(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def hands():
    return [make_phantom(index, 512, "test") for index in range(3)]


@pytest.mark.parametrize("name", NAMES)
def test_every_file_has_its_sum_and_a_card(name):
    folder = WEIGHTS / name
    sums = dict(line.split()[::-1] for line in (folder / "SHA256SUMS").read_text().splitlines())
    files = {path.name for path in folder.iterdir()} - {"SHA256SUMS", "README.md"}
    assert {key.lstrip("*") for key in sums} == files
    for file, digest in sums.items():
        data = (folder / file.lstrip("*")).read_bytes()
        assert hashlib.sha256(data).hexdigest() == digest
    card = (ROOT / "docs" / "model_cards" / f"{name}.md").read_text()
    assert card == (folder / "README.md").read_text()
    assert "not a medical device" in card and "non-commercial" in (folder / "LICENSE").read_text()


def test_they_are_small_and_the_default_is_the_one_to_fine_tune():
    assert sum(size(WEIGHTS / name) for name in NAMES) < 40e6
    assert size(WEIGHTS / SHIPPED) < 10e6
    assert best_network() == SHIPPED and best_network("hand_mask") == "rsna_unet_256"
    for one in shipped_networks():
        assert one.train_flops and one.flops and one.parameters and one.pixels


def test_the_licence_of_the_package_names_their_terms():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["license"].split(" AND ") == ["Apache-2.0", "LicenseRef-RSNA-Bone-Age"]
    named = {path for pattern in project["license-files"] for path in ROOT.glob(pattern)}
    assert {WEIGHTS / name / "LICENSE" for name in NAMES} <= named


@pytest.mark.parametrize("name", [*AGES, None])
def test_an_age_network_reads_what_it_read_when_it_was_published(name, hands):
    predict = boneage_jax.load_predictor(name)
    found = predict([hand.image for hand in hands], [int(hand.male) for hand in hands])
    # Other versions of XLA round differently.
    np.testing.assert_allclose(found["bone_age_months"], AGES[name or SHIPPED], atol=0.2)
    assert (found["low_months"] < found["bone_age_months"]).all()


def test_the_mask_network_finds_the_hands_that_were_drawn(hands):
    segment = load_segmenter("rsna_unet_256")
    for hand, (mask, _) in zip(hands, segment([hand.image for hand in hands]), strict=True):
        both, either = (mask > 0) & (hand.mask > 0), (mask > 0) | (hand.mask > 0)
        assert both.sum() / either.sum() > 0.9

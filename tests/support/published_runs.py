"""Published networks made of the old workdirs, and phantoms that they read."""

import shutil
from pathlib import Path

import pytest

import tests.support.tiny_backbone  # noqa: F401  (registers the networks)
from boneage_jax.inference.load_trained import load_members
from boneage_jax.inference.publish import write_published
from tfds_rsna.hand_phantom.render import make_phantom

OLD = Path(__file__).parents[1] / "inference" / "old_workdirs"
SITE_NOTE = {
    **{"images": 40, "correction": {"slope": 1.02, "intercept": -3.0}},
    **{"before": {"mae": 9.0}, "after": {"mae": 7.5}},
}
IMAGES = [make_phantom(index, 96, "test").image for index in range(3)]


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """A folder of published networks: one, two that are averaged, and a U-Net."""
    folder = tmp_path_factory.mktemp("published")
    for name in ("bone_age", "ensemble", "unet"):
        write_published(load_members(OLD / name), OLD / name, folder / f"tiny_{name}")
    return folder


@pytest.fixture
def published_copy(published, tmp_path):
    """A published network that a test may damage, with the name that others know it by."""
    return Path(shutil.copytree(published / "tiny_bone_age", tmp_path / "tiny_bone_age"))


@pytest.fixture
def by_name_alone(published, monkeypatch, tmp_path):
    """The folder of published networks is on the search path; the current folder is empty."""
    monkeypatch.setenv("BONEAGE_JAX_WEIGHTS", f"/nowhere:{published}")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    return published

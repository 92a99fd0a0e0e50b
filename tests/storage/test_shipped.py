"""Networks by name: in the package, in folders of the user's, on the Hugging Face hub."""

import fnmatch
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

import boneage_jax
from boneage_jax import predict, segment
from boneage_jax.inference.load_trained import load_members, load_trained
from boneage_jax.inference.publish import write_published
from boneage_jax.json_file import read_json
from boneage_jax.storage.layout import SITE
from boneage_jax.storage.shipped import (
    FETCHED,
    best_network,
    network_table,
    shipped_networks,
)
from tests.support.published_runs import IMAGES, OLD, SITE_NOTE
from tests.support.unet_run import call


def test_names(by_name_alone, published, monkeypatch, tmp_path):
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
    expected = boneage_jax.load_predictor(published / best_network())(IMAGES)
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


def test_all_that_is_published_is_fetched_from_the_hub(published, tmp_path):
    """But for the card; the sums would miss the rest."""
    source = published / "tiny_bone_age"
    write_published(
        load_members(source), source, tmp_path / "w", card=False, more={SITE: SITE_NOTE}
    )
    shutil.copytree(OLD / "unet", tmp_path / "w" / "background" / "unet")
    files = [path.relative_to(tmp_path / "w") for path in (tmp_path / "w").rglob("*")]
    wanted = {str(path) for path in files if (tmp_path / "w" / path).is_file()} - {"README.md"}
    assert SITE in wanted and len(wanted) > 8
    assert wanted == {name for name in wanted if any(fnmatch.fnmatch(name, p) for p in FETCHED)}


def test_neither_calibrated_nor_damaged_networks_are_the_default(published, tmp_path, monkeypatch):
    monkeypatch.setattr(boneage_jax, "__file__", str(tmp_path / "__init__.py"))  # without its own
    source = published / "tiny_bone_age"
    write_published(
        load_members(source), source, tmp_path / "a", card=False, more={SITE: SITE_NOTE}
    )
    monkeypatch.setenv("BONEAGE_JAX_WEIGHTS", str(tmp_path))
    with pytest.raises(boneage_jax.InputError, match="no trained network comes"):
        best_network()
    shutil.copytree(source, tmp_path / "damaged")
    (tmp_path / "damaged" / "config.json").write_text("{")
    shutil.copytree(source, tmp_path / "good")
    assert best_network() == "good"
    assert boneage_jax.load_predictor("a")(IMAGES[0])["bone_age_months"].shape == (1,)


def test_the_hub_is_a_source_and_its_cache_does_without_a_network(published, tmp_path, monkeypatch):
    """The folders of the client's own cache, read by the client itself, offline."""
    hub = pytest.importorskip("huggingface_hub")
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")  # nothing listens there
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repo = tmp_path / "models--me--tiny"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("a" * 40)
    shutil.copytree(published / "tiny_bone_age", repo / "snapshots" / ("a" * 40))
    expected = boneage_jax.load_predictor(published / "tiny_bone_age")(IMAGES[0])
    found = boneage_jax.load_predictor("hf:me/tiny")(IMAGES[0])
    assert found["bone_age_months"] == expected["bone_age_months"]
    with pytest.raises(
        boneage_jax.InputError, match=r"hf:me/other cannot be fetched.*no connection"
    ):
        boneage_jax.load_predictor("hf:me/other")
    (repo / "refs" / "v1").write_text("b" * 40)
    shutil.copytree(published / "tiny_ensemble", repo / "snapshots" / ("b" * 40))
    assert len(boneage_jax.load_predictor("hf:me/tiny@v1").members) == 2
    for wrong in ("hf:me", "hf:me/tiny/network.safetensors", "hf:me/tiny@", "hf:me/@v1"):
        with pytest.raises(boneage_jax.InputError, match="must read hf:OWNER/REPO"):
            boneage_jax.load_predictor(wrong)

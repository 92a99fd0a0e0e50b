"""Which source a weight file is of, whether it fits, and what is said where it does not."""

import json
import socket
import sys
import time
import types

import numpy as np
import pytest
from safetensors.numpy import save_file

import boneage_jax
from boneage_jax.pretrained import load_pretrained
from boneage_jax.pretrained.source import kind_of
from tests.support.weight_files import load, refused, save_torch


@pytest.fixture(scope="module")
def wrong(arrays):
    """Copies of the arrays, each with one thing wrong, and what is said of it."""
    infinite = arrays["bn2.bias"].copy()
    infinite[7] = np.inf
    return {
        "missing": ({k: v for k, v in arrays.items() if k != "bn2.bias"}, "lack top_bn/bias"),
        "not finite": (arrays | {"bn2.bias": infinite}, "top_bn/bias.*not finite"),
        "negative variance": (
            arrays | {"bn1.running_var": -arrays["bn1.running_var"]},
            "negative variance",
        ),
        "integers": (arrays | {"bn2.bias": np.zeros(1280, np.int64)}, "int64"),
        "shape": (arrays | {"bn2.bias": np.zeros(1281, np.float32)}, r"\[1281\].*\[1280\]"),
        "left over": (arrays | {"fc.weight": np.zeros((2, 2), np.float32)}, "fc.weight"),
        "another network": ({"layer1.0.conv1.weight": np.zeros(3, np.float32)}, "no EfficientNet"),
    }


@pytest.mark.parametrize(
    "case",
    [
        *("missing", "not finite", "negative variance", "integers", "shape", "left over"),
        "another network",
    ],
)
def test_wrong_content_is_refused(wrong, tmp_path, case):
    content, message = wrong[case]
    path = tmp_path / "efficientnet_lite0.safetensors"
    save_file(content, path)
    assert str(path) in refused(load, path, match=message)


def test_another_variant_is_recognised(arrays, tmp_path):
    path = tmp_path / "tf_efficientnet_lite0.safetensors"
    save_file(arrays, path)
    for name in ("efficientnet_b0", "efficientnet_lite1", "efficientnet_b4"):
        refused(
            boneage_jax.load_pretrained, name, path, match="source looks like efficientnet_lite0"
        )


def test_the_classifier_must_fit(arrays, tmp_path):
    path = tmp_path / "efficientnet_lite0.safetensors"
    save_file(arrays, path)
    refused(load, path, num_classes=6, match="5 classes, num_classes=6.*leave num_classes out")
    headless = {k: v for k, v in arrays.items() if not k.startswith("classifier")}
    save_file(headless, path)
    load(path)
    refused(load, path, num_classes=5, match="no classifier")


def test_channels_must_fit(arrays, tmp_path):
    path = tmp_path / "efficientnet_lite0.safetensors"
    save_file(arrays, path)
    refused(load, path, channels=2, match="reads 3 channels, channels=2")
    refused(load, path, channels=0, match="channels=0")
    grey = arrays | {"conv_stem.weight": np.ascontiguousarray(arrays["conv_stem.weight"][:, :1])}
    save_file(grey, path)
    assert load(path, channels=1)["params"]["stem_conv"]["kernel"].shape == (3, 3, 1, 32)
    refused(load, path, channels=3, match="reads 1 channels, channels=3")


def test_a_file_that_tells_no_family_needs_one(arrays, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(arrays, path)
    refused(load, path, channels=1, match="family='timm_tf' or family='timm'")
    refused(boneage_jax.pretrained_options, "efficientnet_lite0", path, match="family='timm_tf'")
    load(path)  # three channels need no normalisation
    load(path, channels=1, family="timm")
    refused(load, path, family="keras", channels=1, match="a file of timm")
    refused(load, path, family="tensorflow", match="choose one of timm, timm_tf")
    for architecture, family in (("tf_efficientnet_lite0", "timm_tf"), ("efficientnet_b0", "timm")):
        config = {
            "architecture": architecture,
            "pretrained_cfg": {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.3]},
        }
        (tmp_path / "config.json").write_text(json.dumps(config))
        options = boneage_jax.pretrained_options("efficientnet_lite0", path)
        assert options == load_pretrained.FAMILIES[family]
        known = boneage_jax.source_normalization("efficientnet_lite0", path)
        assert known.mean == (0.4, 0.5, 0.6) and known.std == (0.2, 0.2, 0.3)
    config["pretrained_cfg"]["std"] = [0.2, 0.2, 0.0]
    (tmp_path / "config.json").write_text(json.dumps(config))
    refused(boneage_jax.source_normalization, "efficientnet_lite0", path, match="std")


@pytest.mark.parametrize(
    ("path", "padding", "mean"),
    [
        ("efficientnet_lite0_ra-37913777.safetensors", "symmetric", 0.485),
        ("tf_efficientnet_lite0-0aa007d2.safetensors", "same", 0.5),
        ("tf_efficientnet_lite0.in1k/model.safetensors", "same", 0.5),
        ("models--timm--tf_efficientnet_b4.ns_jft_in1k/snapshots/a1/x.safetensors", "same", 0.485),
        ("tf_efficientnet_b4_ap-dedb23e6.safetensors", "same", 0.5),
        ("tf_efficientnet_b4.ap_in1k/model.safetensors", "same", 0.5),
        ("tf_efficientnet_b4_aa-818f208c.safetensors", "same", 0.485),
        ("efficientnet_b0.ra4_e3600_r224_in1k.safetensors", "symmetric", 0.5),
    ],
)
def test_names_of_timm_tell_padding_and_normalisation(tmp_path, path, padding, mean):
    """The means are those of timm's own table of pretrained configurations."""
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({"conv_stem.weight": np.zeros((32, 3, 3, 3), np.float32)}, file)
    name = "efficientnet_lite0" if "lite0" in path else "efficientnet_b4"
    options = boneage_jax.pretrained_options(name, file)
    assert options == {"padding": padding, "bn_epsilon": 1e-3 if padding == "same" else 1e-5}
    assert boneage_jax.source_normalization(name, file).mean[0] == mean


def test_unknown_sources_are_explained(tmp_path):
    refused(load, tmp_path / "nothing.pth", match=r"is not there; name a \.safetensors")
    refused(load, tmp_path, match="folder without the config.json")
    refused(load, "package:no-such-package-here", match="pip install no-such-package-here")
    refused(load, "package:numpy", match="0 weight files")
    refused(load, "hf:timm", match="hf:OWNER/REPO")
    call = boneage_jax.load_pretrained
    refused(call, "efficientnet_b9", "lite0", match="did you mean")
    refused(call, "efficientnet_b0", "lite0", drop_path=1, match="drop_path_rate")


def test_the_file_in_an_installed_package_is_found_and_checked(arrays, tmp_path, monkeypatch):
    """Without importing the package, whose code would fail."""
    package, info = tmp_path / "some_weights", tmp_path / "some_weights-1.0.dist-info"
    (package / "models").mkdir(parents=True)
    info.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError")
    path = save_torch(package / "models" / "efficientnet_lite0.pth", arrays, legacy=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-weights\nVersion: 1.0\n")
    record = "some_weights/__init__.py,,\nsome_weights/models/efficientnet_lite0.pth,{},\n"
    (info / "RECORD").write_text(record.format(""))
    monkeypatch.syspath_prepend(tmp_path)
    load("package:some-weights")
    assert "some_weights" not in sys.modules
    (info / "RECORD").write_text(record.format("sha256=" + "A" * 43))
    refused(load, "package:some-weights", match="reinstall")
    path.unlink()
    refused(load, "package:some-weights", match="install it again")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A stand-in for huggingface_hub that holds the files of a folder."""

    class EntryNotFoundError(Exception):
        pass

    folder = tmp_path / "models--timm--tf_efficientnet_lite0.in1k"
    folder.mkdir()

    def download(repo, file, revision, local_files_only):
        assert not local_files_only and revision in (None, "v1")
        file = f"{revision}/{file}" if revision else file
        if repo != "timm/tf_efficientnet_lite0.in1k":
            raise OSError("offline\nand more")
        if not (folder / file).exists():
            raise EntryNotFoundError(f"404 {file}")
        return str(folder / file)

    module = types.ModuleType("huggingface_hub")
    module.hf_hub_download = download
    errors = types.ModuleType("huggingface_hub.errors")
    errors.EntryNotFoundError = EntryNotFoundError
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    without_proxies(monkeypatch)
    with socket.create_server(("127.0.0.1", 0)) as server:  # the network that is asked for
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        yield folder


def without_proxies(monkeypatch):
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_the_hub_is_asked_for_the_usual_files(hub, arrays):
    repo = "hf:timm/tf_efficientnet_lite0.in1k"
    refused(load, repo, match="cannot be fetched.*download the file")
    save_torch(hub / "pytorch_model.bin", arrays)
    assert boneage_jax.pretrained_options("efficientnet_lite0", repo)["padding"] == "same"
    load(repo)
    changed = arrays | {"bn2.bias": np.full(1280, 3, np.float32)}
    save_file(changed, hub / "model.safetensors")
    assert (load(repo)["params"]["top_bn"]["bias"] == 3).all()
    assert (load(f"{repo}/pytorch_model.bin")["params"]["top_bn"]["bias"] != 3).any()
    (hub / "v1").mkdir()
    save_torch(hub / "v1" / "pytorch_model.bin", arrays)
    assert (load(f"{repo}@v1")["params"]["top_bn"]["bias"] != 3).any()
    refused(load, "hf:a/b", match="offline and more")


def test_without_a_connection_only_the_cache_is_asked(monkeypatch, tmp_path):
    pytest.importorskip("huggingface_hub")
    without_proxies(monkeypatch)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")  # nothing listens there
    began = time.monotonic()
    refused(load, f"hf:nobody/{tmp_path.name}", match="no connection to http://127.0.0.1:1, and")
    assert time.monotonic() - began < 10  # the client alone tries for a minute


@pytest.mark.parametrize("source", [None, 3, b"a.pth", "", "a\0b", "x" * 300, []])
def test_what_is_no_source_is_refused_in_words(source):
    for ask in (
        boneage_jax.load_pretrained,
        boneage_jax.pretrained_options,
        boneage_jax.source_normalization,
    ):
        with pytest.raises(boneage_jax.InputError, match="source="):
            ask("efficientnet_lite0", source)


def test_without_the_hub_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused(load, "hf:a/b", match=r"boneage_jax\[hf\]")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "run 'git lfs pull'"),
        (b"PK\x03\x04\x00\x00", "a zip archive that is cut short"),
        (b"<!DOCTYPE html><html>", "is no weight file .it begins with b'<!DOCTYPE ht'"),
        (b"", "is no weight file"),
    ],
)
def test_what_holds_no_weights_is_told_by_its_first_bytes(content, says, tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(boneage_jax.InputError, match=says):
        kind_of(path)

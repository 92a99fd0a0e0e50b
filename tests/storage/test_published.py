"""The folder of a published network: its sums, and what is refused when it is damaged."""

import json
import os

import numpy as np
import pytest
import safetensors.numpy

import boneage_jax
from boneage_jax.storage.published import rounded, write_sums


def test_rounding_keeps_what_float16_cannot_hold():
    values = {
        "kernel": (np.full((2, 2), 0.1), np.float16),
        "bias": (np.full(3, 1e-7), np.float32),
        "large": (np.full((2, 2), 7e4), np.float32),
        "empty": (np.zeros((0, 3)), np.float16),
    }
    for name, (array, dtype) in values.items():
        assert rounded(array).dtype == dtype, name
    assert np.float32(rounded(values["large"][0])).max() == np.float32(7e4)


@pytest.mark.parametrize(
    "name",
    [
        *("network.safetensors", "config.json", "facts.json", "calibration.npz", "report.json"),
        "LICENSE",
    ],
)
def test_a_changed_byte_is_refused(published_copy, name):
    content = bytearray((published_copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (published_copy / name).write_bytes(content)
    with pytest.raises(boneage_jax.InputError, match=f"{name} is not what was published") as error:
        boneage_jax.load_predictor(published_copy)
    assert "\n" not in str(error.value)
    (published_copy / name).unlink()
    with pytest.raises(boneage_jax.InputError, match=f"{name} is missing, SHA256SUMS lists it"):
        boneage_jax.load_predictor(published_copy)


def test_the_card_may_be_edited(published_copy):
    (published_copy / "README.md").write_text("mine")
    boneage_jax.load_predictor(published_copy)


def _without(name):
    def change(text):
        return "".join(line for line in text.splitlines(True) if not line.endswith(f" {name}\n"))

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_without("calibration.npz"), "does not list calibration.npz"),
        (_without("network.safetensors"), "does not list network.safetensors"),
        (lambda text: text + "0" * 64 + "  ../config.json\n", "line 7 is no sha256 sum"),
        (lambda text: text + "0" * 64 + "  /etc/passwd\n", "line 7 is no sha256 sum"),
        (lambda text: text + "no sum\n", "line 7 is no sha256 sum"),
        (lambda text: text + "0" * 64 + "  background\n", "background is missing"),
        (lambda text: "", "does not list"),
    ],
)
def test_sums_that_do_not_cover_the_folder_are_refused(published_copy, change, says):
    path = published_copy / "SHA256SUMS"
    path.write_text(change(path.read_text()))
    with pytest.raises(boneage_jax.InputError, match=says):
        boneage_jax.load_predictor(published_copy)
    path.unlink()
    with pytest.raises(boneage_jax.InputError, match="SHA256SUMS is missing"):
        boneage_jax.load_predictor(published_copy)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(boneage_jax.InputError, match="SHA256SUMS is damaged"):
        boneage_jax.load_predictor(published_copy)


def test_what_is_no_file_is_not_waited_for(published_copy):
    (published_copy / "facts.json").unlink()
    os.mkfifo(published_copy / "facts.json")
    with pytest.raises(boneage_jax.InputError, match=r"facts.json is not a file"):
        boneage_jax.load_predictor(published_copy)


@pytest.mark.parametrize(
    ("tensors", "notes", "says"),
    [
        ({}, {"format": 9}, "is of format 9, not 1: update boneage_jax"),
        ({}, None, "is no network of boneage_jax, its metadata say"),
        ({}, {"members": []}, "names 0 networks"),
        ({}, {"members": [{"flops": -1, "step": 2}]}, "names 1 networks"),
        ({}, {"members": [1]}, "is no network of boneage_jax"),
        ({"0/params/sex/kernel": np.full((8, 1), np.nan, np.float16)}, {}, "finite"),
        ({"0/params/sex/kernel": np.zeros((8, 1), np.int32)}, {}, "finite"),
        ({"0/params/sex/kernel": np.zeros((9, 1), np.float16)}, {}, r"sex/kernel is \[9, 1\]"),
        ({"0/params/more": np.zeros(3, np.float32)}, {}, "a network with nothing"),
        ({"0/params/sex/kernel": None}, {}, "sex/kernel is nothing"),
    ],
)
def test_weights_that_do_not_fit_are_refused_though_their_sum_is_right(
    published_copy, tensors, notes, says
):
    path = published_copy / "network.safetensors"
    found = safetensors.numpy.load_file(path)
    before = {"format": 1, "members": [{"flops": 1, "step": 1}]}
    found = {name: array for name, array in (found | tensors).items() if array is not None}
    metadata = None if notes is None else {"boneage_jax": json.dumps(before | notes)}
    path.write_bytes(safetensors.numpy.save(found, metadata))
    write_sums(published_copy)
    with pytest.raises(boneage_jax.InputError, match=says) as error:
        boneage_jax.load_predictor(published_copy)
    assert str(path) in str(error.value)


def test_a_truncated_file_is_refused(published_copy):
    path = published_copy / "network.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    write_sums(published_copy)
    with pytest.raises(boneage_jax.InputError, match=r"network.safetensors is damaged"):
        boneage_jax.load_predictor(published_copy)

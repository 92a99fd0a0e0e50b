"""Weight files of torch and safetensors, sound, damaged and hostile."""

import json
import os
import pickle
import struct
import zipfile

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import boneage_jax
from boneage_jax.pretrained.torch_file import open_torch
from tests.support.weight_files import (
    load,
    number,
    refused,
    save_torch,
    state_dict,
    string,
    tensor,
    write_legacy,
    write_zip,
)


def test_the_three_formats_give_the_same_weights(arrays, tmp_path):
    """And these are the written ones, in our axes."""
    zipped = load(save_torch(tmp_path / "tf_efficientnet_lite0.pth", arrays), num_classes=5)
    old = save_torch(tmp_path / "old_efficientnet_lite0.pth", arrays, legacy=True)
    safe = tmp_path / "efficientnet_lite0.safetensors"
    save_file(arrays, safe)
    for other in (load(old, num_classes=5), load(safe, num_classes=5)):
        jax.tree.map(np.testing.assert_array_equal, other, zipped)
    params, stats = zipped["params"], zipped["batch_stats"]
    for ours, theirs in (
        (params["stem_conv"]["kernel"], arrays["conv_stem.weight"].transpose(2, 3, 1, 0)),
        (
            params["block1a_project_conv"]["kernel"][0, 0],
            arrays["blocks.0.0.conv_pw.weight"][:, :, 0, 0].T,
        ),
        (
            params["block4c_dwconv"]["kernel"],
            arrays["blocks.3.2.conv_dw.weight"].transpose(2, 3, 1, 0),
        ),
        (params["block6d_project_bn"]["scale"], arrays["blocks.5.3.bn3.weight"]),
        (stats["block2a_bn"]["var"], arrays["blocks.1.0.bn2.running_var"]),
        (params["predictions"]["kernel"], arrays["classifier.weight"].T),
    ):
        np.testing.assert_array_equal(ours, theirs)
    assert "predictions" not in load(safe)["params"]
    leaves = jax.tree.leaves(zipped)
    assert {leaf.dtype for leaf in leaves} == {np.dtype("float32")}


def test_the_names_of_efficientnet_pytorch_are_known(arrays, tmp_path):
    """The same weights under its names, which number the blocks through."""
    whole = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1"}
    first = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv"}
    first |= {"bn2": "_bn2"}
    later = {"conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv"}
    later |= {"bn2": "_bn1", "conv_pwl": "_project_conv", "bn3": "_bn2"}
    blocks: list[str] = []
    renamed = {}
    for name, array in arrays.items():
        module, variable = name.rsplit(".", 1)
        if module.startswith("blocks"):
            block, part = module.rsplit(".", 1)
            blocks += [block] if block not in blocks else []
            parts = first if block == "blocks.0.0" else later
            module = f"_blocks.{blocks.index(block)}.{parts[part]}"
        else:
            module = (whole | {"classifier": "_fc"})[module]
        renamed[f"{module}.{variable}"] = array
    path = save_torch(tmp_path / "weights.pth", renamed, legacy=True)
    flat = load(path, num_classes=5)
    timm = load(save_torch(tmp_path / "tf_efficientnet_lite0.pth", arrays), num_classes=5)
    jax.tree.map(np.testing.assert_array_equal, flat, timm)
    name = "efficientnet_lite0"
    assert boneage_jax.pretrained_options(name, path) == {"padding": "same", "bn_epsilon": 1e-3}
    # (127 / 255, 128 / 255), as the TensorFlow code that trained EfficientNet-Lite.
    assert boneage_jax.source_normalization(name, path).mean == (127 / 255,) * 3
    refused(load, path, channels=1, family="timm", match="family 'efficientnet_pytorch'")
    call = boneage_jax.load_pretrained
    refused(call, "efficientnet_lite1", path, match="16 blocks, efficientnet_lite1 21")
    many = renamed | {"_blocks.16._bn2.bias": np.zeros(320, np.float32)}
    refused(load, save_torch(path, many), match=r"_blocks\.16\._bn2\.bias")


@pytest.mark.parametrize("legacy", [False, True])
def test_every_dtype_and_any_strides_are_read(tmp_path, legacy):
    whole = np.arange(24, dtype=np.float32)
    bits = (whole.view(np.uint32) >> 16).astype(np.uint16)
    stored = [whole, whole.astype(np.float64), whole.astype(np.float16), bits, np.arange(3)]
    entries = {f"t{i}": tensor(str(i), a, legacy=legacy) for i, a in enumerate(stored)}
    view = {"size": (3, 2), "stride": (1, 6), "offset": 5}
    entries["view"] = tensor("0", whole, legacy=legacy, **view)
    write = write_legacy if legacy else write_zip
    with open_torch(write(tmp_path / "x.pth", state_dict(entries), stored)) as weights:
        for index in range(4):
            np.testing.assert_array_equal(weights[f"t{index}"].read(), whole)
        np.testing.assert_array_equal(weights["view"].read(), [[5, 11], [6, 12], [7, 13]])


def test_a_training_checkpoint_is_entered(tmp_path):
    a = np.ones(2, np.float32)
    inner = b"(" + string("module.x") + tensor("0", a) + b"u"
    program = b"\x80\x02}(" + string("epoch") + number(3) + string("state_dict") + b"}" + inner
    with open_torch(write_zip(tmp_path / "x.pth", program + b"u.", [a])) as weights:
        assert list(weights) == ["x"]


# ------------------------------------------------ hostile and damaged torch files


class Hostile:
    """Unpickling this would create a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_code_in_a_pickle_is_named_and_not_run(tmp_path):
    trap = tmp_path / "trap"
    for number_, write in enumerate((write_zip, write_legacy)):
        for protocol in (2, 4):
            program = pickle.dumps({"a": Hostile(trap)}, protocol)
            path = write(tmp_path / f"{number_}{protocol}.pth", program, [])
            line = refused(load, path, match="mkdir.*nothing was run.*state_dict")
            assert str(path) in line
    assert not trap.exists()


def damaged_programs():
    a = np.zeros(4, np.float32)
    deep = b"\x80\x02}(" + b"N" + b"\x85" * 100_000 + b"Nu."
    build = b"\x80\x02ctorch\nSize\n(Nt" + b"b."
    pid = b"\x80\x02}(" + string("x") + b"(" + string("storage") + b"NNNNtQu."
    return {
        "beyond the storage": (state_dict({"x": tensor("0", a, size=(5,), stride=(1,))}), "beyond"),
        "offset": (state_dict({"x": tensor("0", a, offset=1)}), "beyond"),
        "negative stride": (state_dict({"x": tensor("0", a, stride=(-1,))}), "impossible"),
        "huge by stride 0": (
            state_dict({"x": tensor("0", a, size=(2**30, 2**30), stride=(0, 0))}),
            "beyond",
        ),
        "declared huge": (
            state_dict({"x": tensor("0", a, size=(2**30,), stride=(1,), count=2**30)}),
            "shorter",
        ),
        "a nested key": (deep, "damaged"),
        "state for a name": (build, "damaged"),
        "unknown storage": (pid, "unknown kind"),
        "no STOP": (b"\x80\x02}", "damaged"),
        "no opcodes": (b"\xff\xff", "damaged"),
        "empty stack": (b"\x80\x02.", "damaged"),
        "huge memo": (b"\x80\x02}r\xff\xff\xff\xff(" + string("x") + b"Nu.", "no tensor"),
        "extension": (b"\x80\x02\x82\x01.", "EXT1"),
        "a list": (b"\x80\x02].", "no dict of tensors"),
        "an optimizer": (b"\x80\x02}(" + string("lr") + number(1) + b"u.", "'lr'"),
    }


@pytest.mark.parametrize("case", damaged_programs())
def test_a_pickle_of_anything_else_is_refused(tmp_path, case):
    program, message = damaged_programs()[case]
    path = write_zip(tmp_path / "x.pth", program, [np.zeros(4, np.float32)])

    def read():
        with open_torch(path) as weights:
            for weight in weights.values():
                weight.read()

    refused(read, match=message)


def test_damaged_archives_are_refused(arrays, tmp_path):
    sound = save_torch(tmp_path / "efficientnet_lite0.pth", arrays).read_bytes()
    cases = {"cut": sound[: len(sound) // 2], "flipped": bytearray(sound), "empty": b""}
    cases["flipped"][len(sound) // 2] ^= 0xFF  # type: ignore[index]
    cases["version"] = bytearray(sound)
    cases["version"][sound.index(b"PK\x01\x02") + 6] = 200  # type: ignore[index]
    cases["html"] = b"<!DOCTYPE html><html>not found</html>"
    cases["lfs"] = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
    for name, content in cases.items():
        path = tmp_path / f"efficientnet_lite0_{name}.pth"
        path.write_bytes(bytes(content))
        assert str(path) in refused(load, path, match="fetch|git lfs pull")
    old = save_torch(tmp_path / "efficientnet_lite0_old.pth", arrays, legacy=True)
    old.write_bytes(old.read_bytes()[:-100_000])
    refused(load, old, match="cut short")
    packed = write_zip(tmp_path / "p.pth", state_dict({}), [np.zeros(9)], compress=True)
    refused(load, packed, match="compressed")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(load, tmp_path / "other.zip", match=r"no \.keras file")


def test_damaged_safetensors_are_refused(arrays, tmp_path):
    path = tmp_path / "efficientnet_lite0.safetensors"
    save_file(arrays, path)
    sound = path.read_bytes()
    path.write_bytes(sound[:-10])
    refused(load, path, match="no sound safetensors file")
    header = json.dumps({"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}})
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode())
    refused(load, path, match="no sound safetensors file")
    path.write_bytes(struct.pack("<Q", 2**60) + b"{" + b" " * 100)
    refused(load, path, match="no sound safetensors file")

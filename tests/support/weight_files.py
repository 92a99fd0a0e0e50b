"""Weight files of torch, written byte by byte, so without torch; and how loading one is tried."""

import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

import boneage_jax
from boneage_jax.errors import InputError

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


@pytest.fixture(scope="session")
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

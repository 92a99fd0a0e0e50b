"""Shared by the commands: parsers, recipes by name or file, errors as one line.

Importing this module does not load JAX, so that `run_door` can set up the process first.
"""

import argparse
import ast
import contextlib
import difflib
import gc
import importlib.util
import inspect
import os
import re
import select
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import boneage_jax
from boneage_jax.errors import InputError, Stopped
from boneage_jax.extensions import error_in, load_extensions
from boneage_jax.runtime.cpu_memory import COLLECTIONS
from boneage_jax.runtime.interruption import (
    STATUS,
    end_interrupted,
    end_on_interrupt,
    leave_interrupts,
)
from boneage_jax.runtime.machine_errors import machine_error
from boneage_jax.runtime.standard_streams import open_standard_streams, use_utf8
from boneage_jax.runtime.xla_flags import choose_for_cpu
from boneage_jax.storage.layout import checked_path

if TYPE_CHECKING:
    from ml_collections import ConfigDict

Main = Callable[[Sequence[str]], int | None]
_FREE_SECTIONS = ("data.options", "model.options")  # free-form: options of a builder or model


def run_door(main: Main, *, computes: bool = True, in_a_job: bool = False) -> NoReturn:
    """Runs a command and exits the process with its status; with 130 on Ctrl-C.

    Args:
      main: takes the arguments and returns the status.
      computes: sets up memory and compiler for JAX on CPU; must happen before JAX is loaded.
      in_a_job: the command may be one process of several, which exit together.
    """
    open_standard_streams()  # before any other file is opened, a pipe for signals among them
    end_on_interrupt()
    use_utf8()
    os.environ["MPLBACKEND"] = "agg"  # figures are files; that of a notebook may not be installed
    gc.set_threshold(*COLLECTIONS)
    if computes:
        choose_for_cpu()
    with contextlib.ExitStack() as stack:
        if in_a_job:
            from boneage_jax.runtime.distributed import parting

            stack.enter_context(parting())
        status = exit_status(main, [_with_home(argument) for argument in sys.argv[1:]])
        if status == STATUS:
            end_interrupted()
        leave_interrupts()
        gc.freeze()  # skips the garbage collection at interpreter exit, which takes 0.4 s
        sys.exit(status)


def exit_status(main: Main, argv: Sequence[str] = ()) -> int:
    """Runs `main` and returns the exit status.

    An `InputError`, or what the machine lacks (see `machine_error`), prints one line to standard
    error and gives status 2; `Stopped` prints one line and gives 75. KeyboardInterrupt gives 130,
    see `boneage_jax.runtime.interruption`.
    """
    try:
        _check_current_folder()
        return main(argv) or 0
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(stopped.message, file=sys.stderr)
        return os.EX_TEMPFAIL
    except KeyboardInterrupt:
        return STATUS
    except BrokenPipeError:
        if not _output_is_closed():
            raise  # from another pipe or connection
        # The reader of our output has exited, e.g. head.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (MemoryError, OSError, RuntimeError, ValueError) as error:
        line = machine_error(error)
        if not line:
            raise
        print(f"error: {line}", file=sys.stderr)
        return 2


def _check_current_folder() -> None:
    """Raises InputError if the current folder was removed, since no path can be resolved then."""
    try:
        os.getcwd()
    except OSError as error:
        raise InputError(
            f"the current folder cannot be used ({error.strerror}); change to another one"
        ) from error


def _with_home(argument: str) -> str:
    """Replaces a leading ~ in an argument or in the value of a flag, which most shells leave."""
    match = re.fullmatch(r"(--[\w.]+=)?(~.*)", argument, re.DOTALL)
    return (match[1] or "") + os.path.expanduser(match[2]) if match else argument


def _output_is_closed() -> bool:
    """Returns whether standard output is a pipe without a reader."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


class Parser(argparse.ArgumentParser):
    """Argument parser of a command, built from its module docstring.

    The docstring starts with a summary, followed by a paragraph `usage: python -m MODULE ...`,
    which is shown with the command as it was typed: that form or a console script.
    """

    def __init__(self, doc: str | None, *, extensions: bool = False):
        """Builds the parser.

        Args:
          doc: docstring of the command's module.
          extensions: add --extensions=FILE.py, executed while arguments are parsed.
        """
        doc = doc or "A command.\n\nusage: python -m boneage_jax [OPTIONS]"  # None under -OO
        summary, usage, *rest = doc.strip().split("\n\n")
        words = usage.removeprefix("usage: ")
        command = " ".join(words.split()[:3])  # python -m MODULE
        script = Path(sys.argv[0]).name
        typed = script if script.partition("-")[0] == "boneage" else command
        lines = words.removeprefix(command).splitlines()
        indent = "\n" + " " * len(f"usage: {typed} ")
        super().__init__(
            prog=typed,
            usage=typed + indent.join([lines[0], *(line.strip() for line in lines[1:])]),
            description="\n\n".join([summary, *rest]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        version = f"boneage_jax {boneage_jax.__version__}"
        self.add_argument("--version", action="version", version=version)
        if extensions:
            text = "Python file that registers models, tasks or data sets (docs/extending.md)"
            self.add_argument("--extensions", action=_Extensions, metavar="FILE.py", help=text)

    def error(self, message: str) -> NoReturn:
        """Raises InputError instead of printing a usage message of many lines."""
        raise InputError(f"command line: {message}; see {self.prog} --help")


class _Extensions(argparse.Action):
    """Executes a file while arguments are parsed, and records its name for child processes."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        load_extensions(values)
        namespace.extensions = [*(getattr(namespace, "extensions", None) or []), str(values)]


def path_argument(text: str) -> Path:
    """Returns a path that the user typed, see `checked_path`; the `type` of an argument."""
    try:
        return checked_path(text, "path")
    except InputError as error:  # argparse would hide its message
        raise argparse.ArgumentTypeError(str(error)) from error


def prepare_jax(*, compile_cache: bool = True, trains: bool = False) -> None:
    """Loads JAX and sets it up for a command: compilation cache, memory, devices.

    Args:
      compile_cache: keep compiled programs between starts.
      trains: train steps will run, so their collectives should overlap with computation.

    Raises:
      InputError: JAX_PLATFORMS names devices that JAX cannot use.
    """
    from boneage_jax.runtime.compile_cache import use_compile_cache
    from boneage_jax.runtime.cpu_memory import hold_memory
    from boneage_jax.runtime.machine_errors import check_devices
    from boneage_jax.runtime.process_setup import blas_on_caller, dispatch_on_caller
    from boneage_jax.runtime.xla_flags import hide_latency

    if compile_cache:
        use_compile_cache()
    hold_memory(one_heap=not trains)  # for as long as the command runs
    dispatch_on_caller()
    check_devices()
    if trains:
        hide_latency()
    else:
        blas_on_caller()


def parse_config(argv: Sequence[str]) -> tuple["ConfigDict", Path, list[str]]:
    """Reads the recipe from `--config` and applies the changes in `--config.KEY=VALUE`.

    Args:
      argv: `--config=RECIPE[:PRESET]` or `--config RECIPE[:PRESET]`, where RECIPE is a file or the
        name of a shipped recipe; `--workdir=DIR`; `--config.KEY=VALUE` ...

    Returns:
      (changed config, workdir, keys that were changed).

    Raises:
      InputError: unknown recipe, preset or key, or a value of the wrong type.
    """
    from absl import flags  # imported where used: a command should handle Ctrl-C from the start
    from ml_collections import config_flags

    argv = _with_equal_signs(argv, ("--config", "--workdir"))
    for argument in argv:
        if argument.split("=")[0].lstrip("-") in ("flagfile", "undefok"):  # absl's own
            raise InputError(f"command line: unknown argument {argument!r}; see --help")
    given = [a.split("=", 1)[1] for a in argv if a.startswith("--config=")]
    if not given:
        raise InputError("--config=RECIPE[:PRESET] is needed, e.g. --config=cls (or a recipe file)")
    file, preset = _name_and_preset(given[-1])
    config = load_recipe(given[-1])
    argv = [a for a in argv if not a.startswith("--config=")]
    keys = [a.split("=")[0].removeprefix("--config.") for a in argv if a.startswith("--config.")]
    values = flags.FlagValues()
    try:
        argv = _take_options(config, argv)
        typed = [sys.argv[0], *argv]
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=typed)
        flags.DEFINE_string("workdir", "", "folder of the run", flag_values=values)
        rest = values([sys.argv[0], *argv])[1:]
    except (AttributeError, LookupError) as error:
        # ml_collections quotes the key twice and puts its hint on a second line.
        key = str(error.args[0]).encode().decode("unicode_escape").replace("\n", " - ")
        key = key.strip('"').replace("'", "")
        section = any(argument.startswith("--config.bench.") for argument in argv)
        place = "benchmarking/settings.py" if section else "config.py"
        raise InputError(
            f"command line: unknown config key: {key}; see boneage_jax/{place} for all keys"
        ) from error
    except (flags.Error, TypeError, ValueError) as error:
        raise InputError(f"command line: {str(error).strip().splitlines()[0]}") from error
    if rest:
        raise InputError(f"command line: unexpected argument {rest[0]!r}; see --help")
    name = f"{Path(file).stem}-{preset}" if preset else Path(file).stem
    if values["workdir"].present and not values.workdir:
        raise InputError("--workdir= must name a folder, e.g. --workdir=runs/mine")
    return config, Path(values.workdir or f"runs/{name}"), keys


def load_recipe(recipe: str) -> "ConfigDict":
    """Returns the config of a recipe.

    Args:
      recipe: NAME or NAME:PRESET of a shipped recipe (cls, seg, bench), or FILE.py[:PRESET] of any
        Python file with `get_config()`, which is executed.

    Raises:
      InputError: unknown recipe or preset, or the file fails.
    """
    from ml_collections import ConfigDict

    name, preset = _name_and_preset(recipe)
    path = _find(name, recipe_folder(), "--config")
    make = getattr(load_extensions(path), "get_config", None)
    if not callable(make):
        raise InputError(f"--config={name} has no function get_config(), so it is no recipe")
    if preset and inspect.isfunction(make) and not inspect.signature(make).parameters:
        raise InputError(f"--config={recipe}: {name} has no presets")
    try:
        config = make(preset) if preset else make()
        if not isinstance(config, ConfigDict):
            raise TypeError(f"get_config() must return a ConfigDict, not {type(config).__name__}")
        return ConfigDict(config)  # not locked, nor frozen
    except (InputError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise error_in(path.resolve(), error, make) from error


def _name_and_preset(recipe: str) -> tuple[str, str]:
    """Splits NAME:PRESET or FILE.py:PRESET; a file may have a colon in its name."""
    if not isinstance(recipe, str):
        raise InputError(f"recipe={recipe!r} must be a text, e.g. 'cls:subset'")
    if recipe.endswith(".py"):
        return recipe, ""
    name, _, preset = recipe.rpartition(":") if ".py:" in recipe else recipe.partition(":")
    return name, preset


def find_arms(name: str) -> Path:
    """Returns the path of a sweep's arms, given FILE.py or the name of a shipped one, e.g. levers.

    Raises:
      InputError: unknown file or name.
    """
    return _find(name, recipe_folder() / "sweeps", "--arms")


def _find(name: str, folder: Path, flag: str) -> Path:
    """Returns the Python file at path `name`, or the one called `name` in `folder`."""
    path = checked_path(name, flag) if name else Path()
    if path.suffix == ".py" or os.sep in name:
        if not path.is_file():
            shipped = (folder / f"{path.stem}.py").is_file()
            hint = f"; {flag}={path.stem} names the shipped one" if shipped else ""
            raise InputError(f"{flag}={name}: there is no such file{hint}")
        return path
    names = sorted(p.stem for p in folder.glob("*.py") if p.stem != "__init__")
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(
            f"{flag}={name} is not shipped; {hint}shipped are {', '.join(names)}; a file needs its "
            "suffix .py"
        )
    return folder / f"{name}.py"


def recipe_folder() -> Path:
    """Returns the folder of the shipped recipes: boneage_jax/recipes in a wheel, else configs/."""
    with contextlib.suppress(ImportError):
        spec = importlib.util.find_spec("boneage_jax.recipes")
        if spec is not None and spec.origin:
            return Path(spec.origin).parent
    return Path(boneage_jax.__file__).parent.parent / "configs"


def _with_equal_signs(argv: Sequence[str], names: Sequence[str]) -> list[str]:
    """Joins `--name VALUE` to `--name=VALUE` for the given names and all `--config.KEY`.

    Raises:
      InputError: a value is missing.
    """
    joined: list[str] = []
    pending = False
    for argument in [*argv, "--"]:
        if pending and not argument.startswith("--"):
            joined[-1] += f"={argument}"
            pending = False
            continue
        if pending:
            raise InputError(f"command line: {joined[-1]} needs a value, {joined[-1]}=VALUE")
        joined.append(argument)
        pending = argument in names or (argument.startswith("--config.") and "=" not in argument)
    return joined[:-1]


def _take_options(config: "ConfigDict", argv: Sequence[str]) -> list[str]:
    """Sets keys of the free-form sections; returns the other arguments."""
    rest = []
    for argument in argv:
        key, equals, text = argument.removeprefix("--config.").partition("=")
        section, _, name = key.rpartition(".")
        if not (argument.startswith("--config.") and equals and section in _FREE_SECTIONS):
            rest.append(argument)
            continue
        value: Any = text
        if section == "model.options":  # options of a builder stay text, which it parses itself
            with contextlib.suppress(ValueError, SyntaxError):
                value = ast.literal_eval(text)
        outer, inner = section.split(".")
        with config[outer][inner].unlocked(), config[outer][inner].ignore_type():
            config[outer][inner][name] = value
    return rest

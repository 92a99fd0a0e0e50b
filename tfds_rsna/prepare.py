"""Prepares a data set: decodes and resizes its radiographs once, into array_record files.

NAME: rsna_bone_age, radiograph_folder, hand_mask, hand_phantom; CONFIG: the image size, e.g. 512.
The prepared data lies in --data_dir, else TFDS_DATA_DIR, else ~/tensorflow_datasets. A second call
does nothing, unless the raw folder or the options have changed. TensorFlow is not needed.
"""

import argparse
import contextlib
import importlib
import inspect
import io
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from absl import logging

from boneage_jax.data.file_lock import locked
from boneage_jax.data.masks import MODES
from boneage_jax.errors import InputError, door
from tfds_rsna.fingerprint import (
    Fingerprint,
    fingerprint,
    read_fingerprint,
    write_fingerprint,
)
from tfds_rsna.sizes import name_config, parse_config

NAMES = ("hand_mask", "hand_phantom", "radiograph_folder", "rsna_bone_age")

BuilderClass = type[tfds.core.GeneratorBasedBuilder]


def prepare(
    name: str,
    raw_dir: str | os.PathLike[str] = "",
    data_dir: str | os.PathLike[str] = "",
    *,
    skip_unreadable: bool = False,
    overwrite: bool = False,
    download: bool = False,
    masks: str | os.PathLike[str] = "",
    mask_mode: str = "",
    **options: Any,
) -> tfds.core.DatasetBuilder:
    """Prepares a data set unless that is done; progress goes to standard error.

    The new data replaces the old only when it is whole; an interrupted call leaves the old. Of
    several processes with one `data_dir` one prepares, and the others wait for it.

    Args:
      name: of the builder, or `name/config`.
      raw_dir: folder of the raw data; may be empty once prepared.
      data_dir: where prepared data lies; `TFDS_DATA_DIR` or TFDS's default if empty.
      skip_unreadable: leave out unreadable images instead of raising.
      overwrite: prepare again in any case.
      download: fetch the raw data from its publisher where `raw_dir` is empty and it is needed.
      masks: a folder of hand masks, or the workdir of a U-Net: the radiographs are stored without
        background, as the config SIZE-MODE.
      mask_mode: crop (the default), upright or multiply, see
        `boneage_jax.data.masks.remove_background`.
      **options: of the builder, see its `OPTIONS`; empty strings and None count as not given.

    Returns:
      The builder of the prepared data; its `as_data_source(split)` reads the records.

    Raises:
      InputError: unknown name, config or option, raw data missing or damaged (see the builder),
        no place to write.
    """
    cls, config = _find_builder(name)
    if "masks" in getattr(cls, "OPTIONS", {}):  # there, masks are what is learned
        options, masks = options | {"masks": masks}, ""
    takes_masks = "masks" in inspect.signature(cls.__init__).parameters
    if mask_mode and not masks:
        raise InputError(f"mask_mode={mask_mode} needs masks, a folder or the workdir of a U-Net")
    if masks and not takes_masks:
        raise InputError(f"{cls.name} takes no masks; leave --masks out")
    if masks:
        config = name_config(config, mask_mode or parse_config(config)[1] or "crop")
        name = f"{cls.name}/{config}"
    root = _root(data_dir)
    settings = _check_options(cls, options)
    if masks:
        settings["masks"] = str(Path(masks).expanduser().resolve())
    if "skip_unreadable" in inspect.signature(cls.__init__).parameters:
        settings["skip_unreadable"] = bool(skip_unreadable)
    if raw_dir:
        if not needs_raw_data(cls):
            raise InputError(f"{cls.name} makes its own images; leave raw_dir out")
        raw_dir = Path(raw_dir).expanduser()
        if not raw_dir.is_dir():
            raise InputError(f"raw_dir={raw_dir}: no such folder")
    path = Path(root, cls.name, config, str(cls.VERSION))
    label = f"{cls.name}/{config}" if config else cls.name
    if masks and not Path(settings["masks"]).exists() and _made_with(path, settings["masks"]):
        print(f"{settings['masks']} is gone; {label} keeps what it was made with", file=sys.stderr)
        return _make(cls, config, root, None, {})
    try:
        wanted = fingerprint(raw_dir or None, settings, exclude=root)
        reason = "--overwrite" if overwrite else _why_prepare(path, wanted, needs_raw_data(cls))
        if reason and needs_raw_data(cls) and not raw_dir:
            _check_can_download(cls, label, root, reason, download)
        if reason:
            root.mkdir(parents=True, exist_ok=True)
            note = f"another process prepares {label} in {path}; waiting for it"
            with locked(
                root / f".{label.replace('/', '-')}.lock", lambda: print(note, file=sys.stderr)
            ):
                if not overwrite:  # another process may have prepared it since
                    reason = _why_prepare(path, wanted, needs_raw_data(cls))
                if reason:
                    print(f"preparing {label} in {path} ({reason})", file=sys.stderr)
                    _build(cls, config, root, path, wanted, raw_dir, settings)
        if not reason:
            print(f"{label} is prepared in {path}", file=sys.stderr)
        return _make(cls, config, root, raw_dir, settings)
    except OSError as error:
        raise InputError(
            f"{label} cannot be prepared in {root}: {error.strerror or error}"
            + (f" ({error.filename})" if error.filename else "")
        ) from error


def is_prepared(name: str, data_dir: str | os.PathLike[str] = "") -> bool:
    """Whether `prepare` would find data of `name/config` from raw data, of whatever folder.

    Raises:
      InputError: unknown name or config.
    """
    cls, config = _find_builder(name)
    info = Path(_root(data_dir), cls.name, config, str(cls.VERSION), "dataset_info.json")
    return needs_raw_data(cls) and info.is_file()


def _root(data_dir: str | os.PathLike[str]) -> Path:
    """Where prepared data lies."""
    root = Path(data_dir or os.environ.get("TFDS_DATA_DIR", "") or tfds.core.constants.DATA_DIR)
    return root.expanduser()


def needs_raw_data(cls: BuilderClass) -> bool:
    """Whether a builder reads raw data, or makes its images itself."""
    return "raw_dir" in inspect.signature(cls.__init__).parameters


def _find_builder(name: str) -> tuple[BuilderClass, str]:
    """Class and config name of `name` or `name/config`."""
    base, _, config = name.partition("/")
    if base not in NAMES:
        raise InputError(f"no data set {base!r}; there are {', '.join(NAMES)}")
    cls = importlib.import_module(f"tfds_rsna.{base}.{base}_dataset_builder").Builder
    configs = list(cls.builder_configs)
    if config and config not in configs:
        raise InputError(f"{base} has no config {config!r}; it has {', '.join(configs) or 'none'}")
    return cls, config or (configs[0] if configs else "")


def _check_options(cls: BuilderClass, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that differ from the default; numbers parsed where the default is a number."""
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
        default = parameters[key].default if key in parameters else None
        kind: Any = type(default)
        if isinstance(value, str) and kind in (int, float):
            try:
                value = kind(value)
            except ValueError:
                raise InputError(f"{key}={value!r} must be a number like {default}") from None
        if value != default:
            given[key] = value
    return given


def _why_prepare(path: Path, wanted: Fingerprint, needs_raw: bool) -> str:
    """Why the data must be prepared; empty if what is there will do."""
    if not path.is_dir():
        return "not prepared yet"
    try:
        with _quiet():
            prepared = tfds.builder_from_directory(path)
        files = [file for split in prepared.info.splits.values() for file in split.filepaths]
    except Exception:  # TFDS raises many kinds on damaged metadata
        return "what is there is damaged"
    if not files or not all(os.path.exists(file) for file in files):
        return "what is there is incomplete"
    found = read_fingerprint(path)
    if not wanted.raw and needs_raw:  # somebody who only reads takes what is there
        asked = {k: v for k, v in wanted.settings.items() if k != "skip_unreadable"}
        have = found.settings if found else {}
        differ = any(have.get(key) != value for key, value in asked.items())
        return "the options have changed" if differ else ""
    if found is None:
        return "it is not noted what is there was made from"
    if found.raw != wanted.raw:
        return "the raw folder has changed"
    return "the options have changed" if found.settings != wanted.settings else ""


def _made_with(path: Path, masks: str) -> bool:
    """Whether prepared data is whole and was made with these masks."""
    found = read_fingerprint(path)
    return found is not None and found.settings.get("masks") == masks


def _check_can_download(
    cls: BuilderClass, label: str, root: Path, reason: str, download: bool
) -> None:
    can = getattr(cls, "CAN_DOWNLOAD", False)
    if download and can:
        return
    extra = "; without --raw_dir it is downloaded" if can else ""
    raise InputError(
        f"{label} must be prepared in {root} ({reason}); name the raw data: "
        f"python -m tfds_rsna.prepare {label} --raw_dir=DIR --data_dir={root}{extra}"
    )


def _make(
    cls: BuilderClass, config: str, root: Path, raw_dir: object, settings: Mapping[str, Any]
) -> tfds.core.GeneratorBasedBuilder:
    raw = {"raw_dir": raw_dir} if raw_dir else {}
    with _quiet():
        return cls(
            data_dir=root, config=config or None, file_format="array_record", **raw, **settings
        )


def _build(
    cls: BuilderClass,
    config: str,
    root: Path,
    path: Path,
    wanted: Fingerprint,
    raw_dir: object,
    settings: Mapping[str, Any],
) -> None:
    """Builds in a folder beside, then swaps: the old data stays until the new is whole."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="incomplete.", dir=root) as beside:
        builder = _make(cls, config, Path(beside), raw_dir, settings)
        with _quiet():
            builder.download_and_prepare(download_dir=root / "downloads")
        write_fingerprint(builder.data_dir, wanted)
        if (background := getattr(builder, "background", None)) is not None:
            background.save(Path(builder.data_dir, "background"))
            _report_doubts(background.empty, background.doubtful)
        common = Path(beside, cls.name, ".config")  # TFDS notes the default config there
        if common.is_dir():
            shutil.copytree(common, Path(root, cls.name, ".config"), dirs_exist_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            path.replace(Path(beside, "replaced"))
        Path(builder.data_dir).replace(path)
    splits = ", ".join(f"{key} {split.num_examples}" for key, split in builder.info.splits.items())
    seconds = time.perf_counter() - started
    print(f"prepared {path}: {splits} ({seconds:.1f} s)", file=sys.stderr)


def _report_doubts(empty: Sequence[str], doubtful: Collection[str]) -> None:
    for stems, what in (
        (empty, "radiographs keep their background, for their mask shows no hand"),
        (doubtful, "masks look doubtful, see background/background.json"),
    ):
        if stems:
            more = " ..." if len(stems) > 10 else ""
            print(f"{len(stems)} {what}: {', '.join(sorted(stems)[:10])}{more}", file=sys.stderr)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without TFDS's own reports: its bars count records, ours count images with a rate."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
        logging.set_verbosity(verbosity)


def main() -> int:
    """The door."""
    usage = "python -m tfds_rsna.prepare NAME[/CONFIG] --raw_dir=DIR [--data_dir=DIR] [options]"
    parser = argparse.ArgumentParser(usage=usage, description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("name", metavar="NAME[/CONFIG]", help=f"{', '.join(NAMES)}")
    parser.add_argument("--raw_dir", default="", help="folder of the raw data")
    parser.add_argument("--data_dir", default="", help="folder for the prepared data")
    parser.add_argument(
        "--skip_unreadable", action="store_true", help="leave out unreadable images and list them"
    )
    parser.add_argument(
        "--mask_mode", default="", choices=("", *MODES), help="how, with --masks (crop)"
    )
    parser.add_argument("--overwrite", action="store_true", help="prepare again in any case")
    options: dict[str, list[str]] = {}
    for name in NAMES:
        for option, text in getattr(_find_builder(name)[0], "OPTIONS", {}).items():
            options.setdefault(option, []).append(f"{name}: {text}")
    options.setdefault("masks", []).append(
        "others: folder of hand masks, or a U-Net's workdir: store radiographs without background"
    )
    for option, texts in options.items():
        parser.add_argument(f"--{option}", default="", help="; ".join(texts).replace("%", "%%"))
    args = vars(parser.parse_args())
    # A batch system's stop unwinds like Ctrl-C, and leaves nothing half-done.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    builder = prepare(args.pop("name"), download=True, **args)
    for name, split in builder.info.splits.items():
        print(f"{builder.info.full_name} {name}: {split.num_examples} images")
    return 0


def run() -> None:
    """Console script."""
    sys.exit(door(main))


if __name__ == "__main__":
    run()

"""Prepares data sets, once and atomically."""

import contextlib
import inspect
import io
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow_datasets as tfds
from absl import logging

from boneage_jax.data.file_lock import locked
from boneage_jax.errors import InputError
from boneage_jax.extensions import DATASETS, words_of
from boneage_jax.runtime.interruption import cleans_up
from boneage_jax.storage.layout import checked_path
from boneage_jax.storage.safe_write import is_refused_write
from boneage_jax.storage.shipped import find_network
from tfds_rsna.disk_shuffle import shuffling_on_disk
from tfds_rsna.find_builder import (
    BuilderClass,
    checked_options,
    find_builder,
    fitted_name,
    needs_raw_data,
)
from tfds_rsna.fingerprint import (
    Fingerprint,
    fingerprint,
    read_fingerprint,
    stat_digest,
    write_fingerprint,
)
from tfds_rsna.raw_builder import data_dir_as_given
from tfds_rsna.sizes import name_config, parse_config
from tfds_rsna.sources import (
    default_root,
    load_digests,
    place_of,
    prepared_sets,
    save_digests,
)

_INCOMPLETE = "incomplete."  # prefix of temporary folders
_TEMPORARY = re.compile(re.escape(_INCOMPLETE) + "[a-z0-9_]{8}")  # as tempfile names them
_DAY = 86_400.0  # seconds


class _Place(NamedTuple):
    """Location of a data set: its data folder, and NAME/CONFIG/VERSION below that."""

    root: Path
    below: Path

    @property
    def path(self) -> Path:
        return self.root / self.below


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
    fit: str = "",
    **options: Any,
) -> tfds.core.DatasetBuilder:
    """Prepares a data set unless it is already prepared; progress goes to standard error.

    New data replaces old data only once it is complete; an interrupted call leaves the old data in
    place. If several processes share a `data_dir`, one prepares and the others wait.

    Args:
      name: name of the builder, or `name/config`.
      raw_dir: folder of the raw data; may be empty once prepared.
      data_dir: folder of prepared data; `TFDS_DATA_DIR` or TFDS's default if empty.
      skip_unreadable: leave out unreadable images instead of raising.
      overwrite: prepare again in any case.
      download: download the raw data from its publisher if it is needed and `raw_dir` is empty.
      masks: a folder of hand masks, or a U-Net, by its workdir, folder or name: stores the
        radiographs without background, under the config SIZE-MODE.
      mask_mode: crop (the default), upright or multiply, see
        `boneage_jax.data.masks.remove_background`.
      fit: stretch stores squares under the config SIZE-stretch, pad under SIZE, see
        `boneage_jax.data.files.fit_square`; "" for what the config says.
      **options: options of the builder, see its `OPTIONS`; empty strings and None are ignored.

    Returns:
      The builder of the prepared data; its `as_data_source(split)` reads the records.

    Raises:
      InputError: unknown name, config or option, raw data missing or damaged (see the builder), or
        the data folder cannot be written to.
    """
    if fit:
        name = fitted_name(name, fit)
    cls, config = find_builder(name)
    if "masks" in getattr(cls, "OPTIONS", {}):  # in such a data set the masks are labels
        options, masks = options | {"masks": masks}, ""
    takes_masks = "masks" in inspect.signature(cls.__init__).parameters
    if mask_mode and not masks:
        raise InputError(f"mask_mode={mask_mode} needs masks, a folder or the workdir of a U-Net")
    if masks and not takes_masks:
        raise InputError(f"{cls.name} takes no masks; leave --masks out")
    if masks:
        config = name_config(config, mode=mask_mode or parse_config(config).mode or "crop")
        name = f"{cls.name}/{config}"
    root = default_root(data_dir)
    settings = checked_options(cls, options)
    if masks:
        folder_of_masks = find_network(masks) or checked_path(masks, "masks")
        settings["masks"] = str(folder_of_masks.resolve())
    if "skip_unreadable" in inspect.signature(cls.__init__).parameters:
        settings["skip_unreadable"] = bool(skip_unreadable)
    raw = _check_raw_dir(cls, raw_dir, root)
    below = Path(cls.name, config, str(cls.VERSION))
    label = f"{cls.name}/{config}" if config else cls.name
    try:
        place, wanted = _find_place(root, below, raw, settings)
        found = read_fingerprint(place.path)
        gone = masks and not Path(settings["masks"]).exists()
        if gone and found and found.settings.get("masks") == settings["masks"]:
            print(f"{masks} is gone; {label} keeps what it was made with", file=sys.stderr)
            return _make(cls, config, place.root, None, {})
        earlier = _earlier(root, below, wanted)
        reason = "--overwrite" if overwrite else _why_prepare(place, wanted, cls, earlier)
        if reason and needs_raw_data(cls) and not raw:
            if place.root != root:  # never replace data made from a folder by a download
                folder = found.folder if found and found.folder else "DIR"
                raise InputError(
                    f"{label} in {place.path} was made from a raw folder ({reason}); name it: "
                    f"--raw_dir={folder}"
                )
            _check_can_download(cls, label, root, reason, download)
        if reason:
            root.mkdir(parents=True, exist_ok=True)
            note = f"another process prepares {label} in {root}; waiting for it"
            with locked(
                root / f".{label.replace('/', '-')}.lock", lambda: print(note, file=sys.stderr)
            ):
                if not overwrite:  # another process may have prepared it since
                    place, wanted = _find_place(root, below, raw, settings)
                    reason = _why_prepare(place, wanted, cls, earlier)
                if reason:
                    print(f"preparing {label} in {place.path} ({reason})", file=sys.stderr)
                    _build(cls, config, root, place, wanted, raw, settings)
                    for old in earlier if place.path not in earlier else ():
                        print(
                            f"{old} holds what the folder held before; remove it to save space",
                            file=sys.stderr,
                        )
        if not reason:
            print(f"{label} is prepared in {place.path}", file=sys.stderr)
        return _make(cls, config, place.root, raw, settings)
    except (OSError, RuntimeError) as error:
        # array_record raises a RuntimeError on a full disk.
        refused = is_refused_write(error)
        if not isinstance(error, OSError) and not refused:
            raise
        reason = f"{getattr(error, 'strerror', '') or error}"
        file = f" ({name})" if (name := getattr(error, "filename", "")) else ""
        remedy = "; make room there, or name a writable data_dir" if refused else ""
        if raw and name and Path(name).is_relative_to(raw):
            remedy = "; make it readable, or move it out of raw_dir"
        raise InputError(f"{label} cannot be prepared in {root}: {reason}{file}{remedy}") from error


def _check_raw_dir(cls: BuilderClass, raw_dir: str | os.PathLike[str], root: Path) -> Path | None:
    if not raw_dir:
        return None
    if not needs_raw_data(cls):
        raise InputError(f"{cls.name} makes its own images; leave raw_dir out")
    raw = checked_path(raw_dir, "raw_dir")
    if not raw.is_dir():
        raise InputError(f"raw_dir={raw}: no such folder")
    if next(raw.iterdir(), None) is None:
        raise InputError(f"raw_dir={raw} is empty")
    if os.path.realpath(raw) == os.path.realpath(root):
        raise InputError(
            f"raw_dir={raw} is also the folder of prepared data; name another data_dir"
        )
    return raw


def _find_place(
    root: Path, below: Path, raw: Path | None, settings: Mapping[str, Any]
) -> tuple[_Place, Fingerprint]:
    """Returns the location of the data of a raw folder, existing or not, and its fingerprint.

    Without a raw folder, the newest prepared set with these options is taken, whatever it was made
    from.
    """
    if raw is None:
        wanted = fingerprint(None, settings)
        found = prepared_sets(root, below)
        fitting = [one for one in found if _settings_fit(one.made_from, wanted)]
        return _Place(fitting[0].root if fitting else root, below), wanted
    old = read_fingerprint(root / below)
    if old is not None and old.raw == stat_digest(raw, root):  # prepared by an older version
        wanted = fingerprint(None, settings)
        return _Place(root, below), wanted._replace(raw=old.raw)
    known = load_digests(root)
    before = dict(known)
    wanted = fingerprint(raw, settings, exclude=root, known=known)
    if known != before:
        with contextlib.suppress(OSError):  # a folder that is only read from
            save_digests(root, known)
    return _Place(place_of(root, raw, wanted.raw), below), wanted


def _earlier(root: Path, below: Path, wanted: Fingerprint) -> list[Path]:
    """Returns the sets made from the same raw folder when it had other content."""
    return [
        one.root / below
        for one in prepared_sets(root, below)
        if one.made_from is not None
        and wanted.folder
        and one.made_from.folder == wanted.folder
        and one.made_from.raw != wanted.raw
    ]


def _settings_fit(found: Fingerprint | None, wanted: Fingerprint) -> bool:
    """Returns whether a prepared set has the options that a reader without raw data asks for."""
    asked = {k: v for k, v in wanted.settings.items() if k != "skip_unreadable"}
    have = found.settings if found else {}
    return all(have.get(key) == value for key, value in asked.items())


def is_prepared(name: str, data_dir: str | os.PathLike[str] = "") -> bool:
    """Returns whether `name/config` is made from raw data and prepared, from whatever raw folder.

    Raises:
      InputError: unknown name or config.
    """
    cls, config = find_builder(name)
    below = Path(cls.name, config, str(cls.VERSION))
    return needs_raw_data(cls) and bool(prepared_sets(default_root(data_dir), below))


def features_of(name: str) -> Mapping[str, Any]:
    """Returns the features of the records of `name/config`, prepared or not.

    Raises:
      InputError: unknown name or config, or a registered builder fails.
    """
    cls, config = find_builder(name)
    try:
        return _make(cls, config, Path(os.devnull, "none"), None, {}).info.features or {}
    except Exception as error:
        if cls.name not in DATASETS:
            raise
        raise InputError(f"data set {cls.name!r} fails: {words_of(error)}") from error


def _why_prepare(
    place: _Place, wanted: Fingerprint, cls: BuilderClass, earlier: Sequence[Path]
) -> str:
    """Returns the reason why the data must be prepared; empty if the prepared set is usable."""
    path = place.path
    if not path.is_dir():
        return "the raw folder has changed" if earlier else "not prepared yet"
    try:
        with _quiet():
            prepared = tfds.builder_from_directory(path)
        files = [file for split in prepared.info.splits.values() for file in split.filepaths]
    except Exception:  # TFDS raises many types on damaged metadata
        return "the existing data is damaged"
    if not files or not all(os.path.exists(file) for file in files):
        return "the existing data is incomplete"
    found = read_fingerprint(path)
    if not wanted.raw and needs_raw_data(cls):  # a reader without raw data takes what is prepared
        return "" if _settings_fit(found, wanted) else "the options have changed"
    if found is None:
        return "the existing data has no fingerprint"
    if found.raw != wanted.raw:
        return "the raw folder has changed"
    if found.settings != wanted.settings:
        return "the options have changed"
    return "the files of its options have changed" if found.files != wanted.files else ""


def _check_can_download(
    cls: BuilderClass, label: str, root: Path, reason: str, download: bool
) -> None:
    can = getattr(cls, "CAN_DOWNLOAD", False)
    if download and can:
        return
    extra = "; without --raw_dir it is downloaded" if can else ""
    raise InputError(
        f"{label} must be prepared in {root} ({reason}); name the raw data by data.raw_dir, or "
        f"prepare it: python -m tfds_rsna.prepare {label} --raw_dir=DIR --data_dir={root}{extra}"
    )


def _make(
    cls: BuilderClass, config: str, root: Path, raw: Path | None, settings: Mapping[str, Any]
) -> tfds.core.GeneratorBasedBuilder:
    known = inspect.signature(cls.__init__).parameters
    own = {"raw_dir": raw} if raw and "raw_dir" in known else {}
    with _quiet(), data_dir_as_given():
        return cls(
            data_dir=root, config=config or None, file_format="array_record", **own, **settings
        )


def _build(
    cls: BuilderClass,
    config: str,
    root: Path,
    place: _Place,
    wanted: Fingerprint,
    raw: Path | None,
    settings: Mapping[str, Any],
) -> None:
    """Builds in a temporary folder, then swaps: old data stays until the new data is complete."""
    started = time.perf_counter()
    path = place.path
    _remove_left_behind(root)
    with cleans_up(), tempfile.TemporaryDirectory(prefix=_INCOMPLETE, dir=root) as beside:
        builder = _make(cls, config, Path(beside), raw, settings)
        downloads = tfds.download.DownloadConfig(manual_dir=raw)
        with _quiet(), shuffling_on_disk():
            builder.download_and_prepare(download_dir=root / "downloads", download_config=downloads)
        write_fingerprint(builder.data_dir, wanted)
        if (background := getattr(builder, "background", None)) is not None:
            background.save(Path(builder.data_dir, "background"))
            _report_doubts(background.empty, background.doubtful)
        common = Path(beside, cls.name, ".config")  # TFDS records the default config there
        if common.is_dir():
            shutil.copytree(common, place.root / cls.name / ".config", dirs_exist_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            path.replace(Path(beside, "replaced"))
        Path(builder.data_dir).replace(path)
    splits = ", ".join(f"{key} {split.num_examples}" for key, split in builder.info.splits.items())
    seconds = time.perf_counter() - started
    print(f"prepared {path}: {splits} ({seconds:.1f} s)", file=sys.stderr)


def _remove_left_behind(root: Path) -> None:
    """Removes the temporary folders of processes that were killed, a day after their last write.

    Younger ones may be in use: by another data set, or on a file system without locks.
    """
    for folder in root.glob(f"{_INCOMPLETE}*"):
        if not _TEMPORARY.fullmatch(folder.name):
            continue
        with contextlib.suppress(OSError):
            written = max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
            if time.time() - written > _DAY:
                shutil.rmtree(folder)
                print(f"removed {folder}, which a killed preparation had left", file=sys.stderr)


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
    """Context manager that silences TFDS: its progress bars count records, ours count images."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
        logging.set_verbosity(verbosity)

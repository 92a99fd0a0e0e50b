"""Base class of the builders that read a folder of raw radiographs."""

import contextlib
import contextvars
import csv
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from boneage_jax.data.counts import describe_notes
from boneage_jax.errors import InputError
from boneage_jax.inference.background_removal import Background
from tfds_rsna.disk_shuffle import shuffling_on_disk
from tfds_rsna.fingerprint import fingerprint, read_fingerprint, write_fingerprint
from tfds_rsna.sizes import Stored, open_background, parse_config
from tfds_rsna.sources import (
    default_root,
    load_digests,
    place_of,
    prepared_sets,
    save_digests,
)

_NOTES = "notes.csv"

_as_given: contextvars.ContextVar[bool] = contextvars.ContextVar("as_given", default=False)


@contextlib.contextmanager
def data_dir_as_given() -> Iterator[None]:
    """Context manager in which builders use the given `data_dir` itself, not a subfolder of it."""
    token = _as_given.set(True)
    try:
        yield
    finally:
        _as_given.reset(token)


class RawDataBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Prepares a data set from a raw folder, and reads the prepared records.

    Each raw folder has its own data folder below `data_dir`, see `tfds_rsna.sources`. All arguments
    beyond TFDS's own are needed only for preparing.

    Args:
      raw_dir: folder of the raw data; TFDS's `DownloadConfig(manual_dir=...)` is equivalent.
        Without either, the most recently prepared set is read, whatever folder it was made from.
      skip_unreadable: leave out unreadable images instead of stopping.
      masks: for configs without background, a folder of hand masks or a U-Net's workdir.
    """

    MANUAL_DOWNLOAD_INSTRUCTIONS = "manual_dir is the folder of the raw data, as raw_dir is."

    def __init__(
        self,
        *,
        raw_dir: str | Path | None = None,
        skip_unreadable: bool = False,
        masks: str | Path = "",
        **tfds_options: Any,
    ):
        self._raw_dir = Path(raw_dir).expanduser() if raw_dir else None
        self._skip_unreadable = skip_unreadable
        self._masks = masks
        self.background: Background | None = None
        self.noted: dict[str, tuple[str, ...]] = {}  # notes on how files were read, by their names
        self._root: Path | None = None  # contains the data folders; None: data_dir is used as given
        if not _as_given.get():
            self._root = default_root(tfds_options.get("data_dir"))
            if self._raw_dir is not None:
                tfds_options["data_dir"] = _find_place(self._root, self._raw_dir)
            elif newest := self._newest(tfds_options.get("config")):
                tfds_options["data_dir"] = newest
        super().__init__(**{"file_format": "array_record"} | tfds_options)

    def _newest(self, config: Any) -> Path | None:
        """Returns the data folder of the most recently prepared set, or None."""
        assert self._root is not None
        config = config or next(iter(self.builder_configs), "")
        name = config if isinstance(config, str) else config.name
        found = prepared_sets(self._root, Path(self.name, name, str(self.VERSION)))
        if len(found) > 1:
            folder = found[0].made_from.folder if found[0].made_from else ""
            print(
                f"{self.name}/{name}: reading the newest of {len(found)} prepared sets, "
                f"{found[0].root}{f' made from {folder}' if folder else ''}; raw_dir names another",
                file=sys.stderr,
            )
        return found[0].root if found else None

    @property
    def _stored(self) -> Stored:
        assert self.builder_config is not None
        return parse_config(self.builder_config.name)

    @property
    def _size(self) -> int | None:
        return self._stored.size

    def download_and_prepare(
        self,
        *,
        download_dir: Any = None,
        download_config: tfds.download.DownloadConfig | None = None,
        **options: Any,
    ) -> None:
        """Prepares as TFDS does, unless already prepared; `manual_dir` is equivalent to `raw_dir`.

        Raises:
          InputError: the folder does not exist or cannot be read, see the builder.
        """
        manual = str(download_config.manual_dir or "") if download_config else ""
        if manual and self._raw_dir is None and self._root is not None:
            self._raw_dir = _existing(Path(manual).expanduser())
            self._move_to(_find_place(self._root, self._raw_dir))
        with shuffling_on_disk():
            super().download_and_prepare(
                download_dir=download_dir, download_config=download_config, **options
            )
        if self.noted:
            self._write_notes()
        if self._root is not None and read_fingerprint(self.data_dir) is None:
            settings = {"skip_unreadable": self._skip_unreadable}
            known = load_digests(self._root)
            found = fingerprint(self._raw_dir, settings, exclude=self._root, known=known)
            write_fingerprint(self.data_dir, found)

    def _write_notes(self) -> None:
        """Writes notes.csv beside the records and prints how many files have each note."""
        with Path(self.data_path, _NOTES).open(
            "w", newline="", encoding="utf-8", errors="surrogateescape"
        ) as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(("file", "note"))
            rows.writerows((name, "; ".join(notes)) for name, notes in sorted(self.noted.items()))
        counts = Counter(note for notes in self.noted.values() for note in notes)
        print(
            f"{self.name}: {describe_notes(counts)}; see {_NOTES} beside the records",
            file=sys.stderr,
        )

    def _move_to(self, root: Path) -> None:
        """Makes `root` the data folder of this builder and reloads its info."""
        self._data_dir_root, self._data_dir = self._build_data_dir(str(root))
        if (self.data_path / "dataset_info.json").exists():
            self.info.read_from_directory(self._data_dir)

    def _find_raw_dir(self, dl_manager: tfds.download.DownloadManager) -> Path | None:
        """Returns the folder of the raw data; None if neither raw_dir nor manual_dir was given.

        Raises:
          InputError: the folder does not exist or is empty.
        """
        if self._raw_dir is not None:
            return _existing(self._raw_dir)
        manual = dl_manager._manual_dir  # the public property raises if it is unset
        if manual is None:
            return None
        conventional = Path(manual) == Path(dl_manager.download_dir, "manual")
        return None if conventional and not Path(manual).is_dir() else _existing(Path(manual))

    def _open_background(self) -> None:
        """Sets `background`, which removes backgrounds; None for a config that keeps them."""
        assert self.builder_config is not None
        self.background = open_background(self.builder_config.name, self._masks)


def _find_place(root: Path, raw_dir: Path) -> Path:
    """Returns the data folder for the current content of a raw folder."""
    known = load_digests(root)
    before = dict(known)
    digest = fingerprint(_existing(raw_dir), {}, exclude=root, known=known).raw
    if known != before:
        with contextlib.suppress(OSError):  # a read-only folder
            save_digests(root, known)
    return place_of(root, raw_dir, digest)


def _existing(folder: Path) -> Path:
    if not folder.is_dir() or next(folder.iterdir(), None) is None:
        raise InputError(f"raw_dir={folder}: no such folder, or it is empty")
    return folder

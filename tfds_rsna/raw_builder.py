"""What the builders that read a folder of raw radiographs have in common."""

import sys
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from boneage_jax.errors import InputError
from boneage_jax.inference.background_removal import Background
from tfds_rsna.fingerprint import fingerprint, read_fingerprint
from tfds_rsna.sizes import open_background, parse_config
from tfds_rsna.sources import default_root, prepared_sets


class RawDataBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Prepares from a raw folder, and reads what was prepared.

    Args (all beyond TFDS's own are needed for preparing only):
      raw_dir: folder of the raw data; TFDS's `DownloadConfig(manual_dir=...)` stands in for it.
        Without either the data prepared last is read, whatever folder it was made from.
      skip_unreadable: leave out unreadable images instead of stopping.
      masks: of the configs without background: a folder of hand masks or a U-Net's workdir.
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
        if self._raw_dir is None:
            tfds_options["data_dir"] = self._newest(tfds_options)
        super().__init__(**{"file_format": "array_record"} | tfds_options)

    @classmethod
    def _newest(cls, options: dict[str, Any]) -> Path:
        """The data folder of the set prepared last; the one asked for where there is none."""
        root = default_root(options.get("data_dir"))
        config = options.get("config") or next(iter(cls.builder_configs), "")
        name = config if isinstance(config, str) else config.name
        found = prepared_sets(root, Path(cls.name, name, str(cls.VERSION)))
        if len(found) > 1:
            folder = found[0].made_from.folder if found[0].made_from else ""
            print(
                f"{cls.name}/{name}: reading the newest of {len(found)} prepared sets, "
                f"{found[0].root}{f' made from {folder}' if folder else ''}; raw_dir names another",
                file=sys.stderr,
            )
        return found[0].root if found else root

    @property
    def _size(self) -> int | None:
        assert self.builder_config is not None
        return parse_config(self.builder_config.name)[0]

    def download_and_prepare(
        self, *, download_config: tfds.download.DownloadConfig | None = None, **options: Any
    ) -> None:
        """Prepares as TFDS does, unless that is done; `manual_dir` stands for `raw_dir`.

        Raises:
          InputError: the prepared data was made from another folder than `manual_dir`.
        """
        manual = str(download_config.manual_dir or "") if download_config else ""
        found = read_fingerprint(self.data_path) if manual and self._raw_dir is None else None
        if found is not None:
            raw = fingerprint(Path(manual).expanduser(), {}, exclude=Path(self._data_dir_root)).raw
            if raw != found.raw:
                raise InputError(
                    f"manual_dir={manual} is not what {self.data_path} was made from; prepare it "
                    f"by python -m tfds_rsna.prepare {self.name} --raw_dir={manual}"
                )
        super().download_and_prepare(download_config=download_config, **options)

    def _find_raw_dir(self, dl_manager: tfds.download.DownloadManager) -> Path | None:
        """The folder of the raw data; None where neither raw_dir nor manual_dir was given.

        Raises:
          InputError: there is no such folder, or it is empty.
        """
        given = self._raw_dir
        if given is None:
            manual = dl_manager._manual_dir  # the public name fails where there is none
            if manual is None or Path(manual) == Path(dl_manager.download_dir, "manual"):
                return None
            given = Path(manual)
        if not given.is_dir() or next(given.iterdir(), None) is None:
            raise InputError(f"raw_dir={given}: no such folder, or it is empty")
        return given

    def _open_background(self) -> None:
        """Sets `background`, what removes it from each image; None for whole radiographs."""
        assert self.builder_config is not None
        self.background = open_background(self.builder_config.name, self._masks)

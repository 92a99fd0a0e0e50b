"""Writes the features of many radiographs as one NumPy archive."""

import os
from pathlib import Path

import numpy as np

from boneage_jax.errors import InputError
from boneage_jax.storage.safe_write import check_writable, in_one_piece


class FeatureFile:
    """Collects the features of radiographs, 4 F bytes each, and writes them at the end.

    Args:
      path: file to write, NAME.npz.

    Raises:
      InputError: another suffix, or no such folder.
    """

    def __init__(self, path: Path):
        if path.suffix.lower() != ".npz" or path.is_dir() or not path.absolute().parent.is_dir():
            raise InputError(f"--features={path} must name a file .npz in a folder that exists")
        check_writable(path.absolute().parent)  # the features of a long run are written at its end
        self._path = path
        self._files: list[str] = []
        self._rows: list[np.ndarray] = []

    def add(self, file: Path, features: np.ndarray) -> None:
        """Adds the features of a radiograph, float32 [F]."""
        self._files.append(os.fspath(file))
        self._rows.append(np.array(features, np.float32))  # a copy: not a view of its whole batch

    def close(self) -> None:
        """Writes `files`, text [n], and `features`, float32 [n, F], in the order of the files.

        Raises:
          InputError: the file cannot be written; an existing one is left unchanged.
        """
        rows = np.stack(self._rows) if self._rows else np.zeros((0, 0), np.float32)
        try:
            with in_one_piece(self._path) as part, part.open("wb") as file:
                np.savez(file, files=np.array(self._files, str), features=rows)
        except OSError as error:
            raise InputError(
                f"--features={self._path} cannot be written: {error.strerror}"
            ) from error

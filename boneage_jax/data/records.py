"""Records of prepared data, whose files may be damaged."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

from boneage_jax.errors import InputError

if TYPE_CHECKING:
    import tensorflow_datasets as tfds


class Records:
    """Records of a split with random access, as in TFDS's `as_data_source`."""

    def __init__(self, builder: "tfds.core.DatasetBuilder", split: str):
        """Opens the files of a split.

        Args:
          builder: builder of prepared data.
          split: name of the split.

        Raises:
          InputError: the files cannot be opened.
        """
        self._folder, self._split = Path(builder.data_path), split
        try:
            self._source: Any = builder.as_data_source(split=split)
        except Exception as error:  # array_record and TFDS raise many types on damaged files
            raise self._damaged(error) from error

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        """Returns one record.

        Raises:
          InputError: the file is damaged there.
        """
        try:
            return self._source[index]
        except IndexError:
            raise
        except Exception as error:
            raise self._damaged(error) from error

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def _damaged(self, error: Exception) -> InputError:
        reason = " ".join(str(error).split())[:200]
        return InputError(
            f"{self._folder}: the records of split {self._split} are damaged ({reason}); remove "
            "that folder, and the same command prepares the data again"
        )

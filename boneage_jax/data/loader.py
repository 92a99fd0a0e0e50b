"""From prepared records to batches on the device, with grain.

Nothing is decoded here: a record holds raw uint8 pixels. Batches depend only on the data, the
seed and the batch size, not on threads: batching comes before the threaded read.
"""

from collections.abc import Callable, Iterator
from typing import Any

import grain
import grain.experimental
import numpy as np

from boneage_jax.data.source import Split

HostBatch = dict[str, np.ndarray]
Put = Callable[[HostBatch], Any]


class _Rows:
    """The records of a split, cut down to what a step reads; `length` beyond the end pads."""

    def __init__(self, split: Split, labels: tuple[str, ...], length: int):
        self._split, self._labels, self._length = split, labels, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> HostBatch:
        real = index < len(self._split)
        record = self._split.source[int(self._split.rows[index if real else 0])]
        row = {"image": record["image"], "weight": np.float32(real)}
        for label in self._labels:
            value = np.asarray(record[label])
            number = value.ndim == 0 and value.dtype.kind in "biu"
            row[label] = value.astype(np.int32) if number else value
        return row


def _stamp(index: int, row: HostBatch) -> HostBatch:
    """Numbers an image by its place in the whole run, the seed of all its random draws."""
    return row | {"draw": np.asarray(index % 2**32, np.uint32)}


def train_batches(
    split: Split,
    labels: tuple[str, ...],
    batch_size: int,
    *,
    seed: int,
    put: Put,
    process: tuple[int, int] = (0, 1),
    threads: int = 4,
    buffer: int = 2,
) -> grain.DatasetIterator:
    """An endless, checkpointable iterator of training batches, moved ahead of time.

    Each epoch is a new seeded permutation; epochs follow each other without a gap, so a batch
    may span two.

    Args:
      split: the images.
      labels: which labels go along.
      batch_size: images per batch over all processes; the processes must divide it.
      seed: of the shuffle.
      put: moves a host batch to the devices; called in a thread while the last step runs.
      process: (index, count); each process reads only its share of every batch.
      threads: that read records.
      buffer: batches kept ready on the host and, after `put`, on the device.

    Returns:
      A grain iterator of `put({image uint8 [B/P, S, S, 1], draw uint32 [B/P], weight, labels})`.
    """
    index, count = process
    rows = grain.MapDataset.source(_Rows(split, labels, len(split)))
    rows = rows.shuffle(seed=seed).repeat().map_with_index(_stamp)
    if count > 1:
        rows = rows[index::count]
    return _start(rows.batch(batch_size // count), put, threads, buffer)


def eval_batches(
    split: Split,
    labels: tuple[str, ...],
    batch_size: int,
    *,
    put: Put,
    process: tuple[int, int] = (0, 1),
    threads: int = 4,
    buffer: int = 2,
) -> Iterator[Any]:
    """Each image of a split once, in order; see `train_batches` for the arguments.

    The last batch is padded by repeated images with `weight` 0, so that every batch has the
    same shape and the metrics stay exact. Process p of P reads rows p, p + P, p + 2P ...
    """
    index, count = process
    padded = -(-len(split) // batch_size) * batch_size
    rows = grain.MapDataset.source(_Rows(split, labels, padded)).map_with_index(_stamp)
    if count > 1:
        rows = rows[index::count]
    return _start(rows.batch(batch_size // count), put, threads, buffer)


def _start(batches: grain.MapDataset, put: Put, threads: int, buffer: int) -> Any:
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(buffer, threads))
    ready = batches.to_iter_dataset(options).map(put)
    return iter(grain.experimental.ThreadPrefetchIterDataset(ready, prefetch_buffer_size=buffer))

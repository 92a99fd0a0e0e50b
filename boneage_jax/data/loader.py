"""Loads batches of prepared records onto the device, with grain.

Nothing is decoded here: a record holds raw uint8 pixels. grain shuffles, numbers and batches
indices, and each batch is read at once. Batches depend only on the data, the seed and the batch
size, not on threads, since batching comes before the threaded read.
"""

from collections.abc import Callable, Iterator
from typing import Any

import grain
import grain.experimental
import numpy as np

from boneage_jax.data.source import Split
from boneage_jax.data.uncompressed import Uncompressed

HostBatch = dict[str, np.ndarray]
Put = Callable[[HostBatch], Any]


class _Read:
    """Reads the records of a batch, keeping only the features that a step needs."""

    def __init__(self, split: Split, labels: tuple[str, ...]):
        self._split, self._keys = split, ("image", *labels)

    def __call__(self, numbers: HostBatch) -> HostBatch:
        """Reads the batch of `index` [B] (past the end of the split is padding) and `draw` [B]."""
        index, source = numbers["index"], self._split.source
        real = index < len(self._split)
        rows = self._split.rows[np.where(real, index, 0)]
        if isinstance(source, Uncompressed):
            batch = source.batch(rows, self._keys)
        else:
            records = [source[int(row)] for row in rows]
            batch = {key: np.stack([record[key] for record in records]) for key in self._keys}
        for key, values in batch.items():
            if values.ndim == 1 and values.dtype.kind in "biu":
                batch[key] = values.astype(np.int32)
        return batch | {"draw": numbers["draw"], "weight": real.astype(np.float32)}


def _number(position: int, index: int) -> HostBatch:
    """Returns an image's index and its position in the run, which seeds its random draws."""
    return {"index": np.int64(index), "draw": np.uint32(position % 2**32)}  # type: ignore[dict-item]


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
    """Returns an endless, checkpointable iterator of training batches, prefetched to the devices.

    Each epoch is a new seeded permutation; epochs follow each other without a gap, so a batch may
    span two.

    Args:
      split: the images.
      labels: names of the labels to include.
      batch_size: images per batch over all processes; must be divisible by their number.
      seed: seed of the shuffle.
      put: moves a host batch to the devices; called in a thread while the previous step runs.
      process: (index, count); each process reads only its share of every batch.
      threads: number of reading threads, each reading whole batches.
      buffer: batches kept ready on the host and, after `put`, on the device.

    Returns:
      A grain iterator of `put({image uint8 [B/P, S, S, 1], draw uint32 [B/P], weight, labels})`.
    """
    index, count = process
    rows = grain.MapDataset.range(len(split))
    rows = rows.shuffle(seed=seed).repeat().map_with_index(_number)
    if count > 1:
        rows = rows[index::count]
    # Rounded up, the number of batches of one image would be one more than grain can count.
    batches = rows.batch(batch_size // count, drop_remainder=True).map(_Read(split, labels))
    return _start(batches, put, threads, buffer)


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
    """Returns an iterator over each image of a split once, in order.

    The last batch is padded with repeated images of `weight` 0, so that all batches have the same
    shape and the metrics stay exact. Process p of P reads rows p, p + P, p + 2P ... Arguments as
    for `train_batches`.
    """
    index, count = process
    padded = -(-len(split) // batch_size) * batch_size
    rows = grain.MapDataset.range(padded).map_with_index(_number)
    if count > 1:
        rows = rows[index::count]
    batches = rows.batch(batch_size // count).map(_Read(split, labels))
    return _start(batches, put, threads, buffer)


def _start(batches: grain.MapDataset, put: Put, threads: int, buffer: int) -> Any:
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(buffer, threads))
    ready = batches.to_iter_dataset(options).map(put)
    return iter(grain.experimental.ThreadPrefetchIterDataset(ready, prefetch_buffer_size=buffer))

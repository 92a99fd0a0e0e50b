"""Joins radiographs of many clients into steps of one network."""

import asyncio
import collections
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from boneage_jax.inference.predictor import Predictor

Row = dict[str, Any]


class _Waiting(NamedTuple):
    square: np.ndarray
    male: int
    row: "asyncio.Future[Row]"


class Batches:
    """One network for many callers: who comes while it is busy is read together in the next step.

    Nobody waits for a batch to fill up. The predictors hold the same network, compiled for
    different batch sizes: the smallest that holds all who wait is taken, since a step costs as much
    as its batch size, however many images it holds.

    Attributes:
      steps: steps done.
      images: images read in them.
    """

    def __init__(self, predictors: Sequence["Predictor"]):
        self._predictors = sorted(predictors, key=lambda each: each.batch_size)
        self._waiting: collections.deque[_Waiting] = collections.deque()
        self._wake = asyncio.Event()
        self.steps = self.images = 0

    async def read(self, square: np.ndarray, male: int) -> Row:
        """Returns the predictions for an image, by name; see `Predictor.read`.

        A caller that is cancelled leaves the queue.

        Args:
          square: network input, uint8 [S, S].
          male: 1, 0 or -1.

        Raises:
          Exception: whatever the step with this image raised.
        """
        row: asyncio.Future[Row] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(square, male, row))
        self._wake.set()
        return await row

    async def run(self) -> None:
        """Runs steps until it is cancelled; the network has a thread of its own."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, "network") as thread:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while batch := self._next():
                    try:
                        rows = await loop.run_in_executor(thread, self._step, batch)
                    except Exception as error:  # must not end the service
                        for each in batch:
                            if not each.row.done():
                                each.row.set_exception(error)
                        continue
                    for each, row in zip(batch, rows, strict=True):
                        if not each.row.done():  # its caller was cancelled
                            each.row.set_result(row)

    def _next(self) -> list[_Waiting]:
        """Takes as many as fit into a step from the queue."""
        batch: list[_Waiting] = []
        while self._waiting and len(batch) < self._predictors[-1].batch_size:
            first = self._waiting.popleft()
            if not first.row.done():
                batch.append(first)
        return batch

    def _step(self, batch: list[_Waiting]) -> list[Row]:
        fitting = next(each for each in self._predictors if each.batch_size >= len(batch))
        rows = fitting.read([each.square for each in batch], [each.male for each in batch])
        self.steps += 1
        self.images += len(batch)
        return [{key: values[at] for key, values in rows.items()} for at in range(len(batch))]


def load_ladder(workdir: str | None, batch_size: int) -> list["Predictor"]:
    """Loads a network for steps of 1, 2, 4 ... up to `batch_size` images, and compiles each.

    Raises:
      InputError: see `boneage_jax.load_predictor`.
    """
    from boneage_jax.inference.predictor import load_predictor  # loads JAX

    largest = load_predictor(workdir, batch_size=batch_size)
    ladder, size = {largest.batch_size: largest}, 1
    while size < largest.batch_size:
        predictor = load_predictor(workdir, batch_size=size)  # rounded up to devices
        ladder[predictor.batch_size] = predictor
        size = 2 * predictor.batch_size
    for predictor in ladder.values():
        predictor.read([np.zeros([predictor.image_size] * 2, np.uint8)])
    return list(ladder.values())

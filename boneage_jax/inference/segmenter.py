"""Hand masks of radiographs by a trained U-Net, at the size of each radiograph."""

import os
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from boneage_jax.data.files import fit_square
from boneage_jax.data.masks import MaskCheck, check_mask, clean_mask, cut_padding, unfit
from boneage_jax.errors import InputError
from boneage_jax.state import flops_of
from boneage_jax.storage.workdir import Trained, load_trained

_BATCH = 16


class HandMaskFound(NamedTuple):
    """The mask of one radiograph, bool [H, W], and what can be said of it."""

    mask: np.ndarray
    check: MaskCheck


class Segmenter:
    """A trained U-Net as a function of radiographs; compiled once, on its first batch.

    Args:
      trained: see `boneage_jax.storage.workdir.load_trained`.
      largest, fill: see `boneage_jax.data.masks.clean_mask`.
    """

    def __init__(self, trained: Trained, *, largest: bool = True, fill: bool = True):
        self._trained, self._largest, self._fill = trained, largest, fill
        self._variables = {
            "params": trained.state.eval_params,
            "batch_stats": trained.state.batch_stats,
        }
        self.batch_size = int(trained.run.config.eval_batch_size)
        self.image_size = trained.run.facts.image_size
        self.flops_per_mask = trained.run.eval_flops // self.batch_size
        self.train_flops = flops_of(trained.state.flops_spent)

    def __call__(self, images: Sequence[np.ndarray]) -> list[HandMaskFound]:
        """Finds the hand in radiographs, uint8 [H, W] each, of any sizes.

        Raises:
          InputError: an image that is not uint8 [H, W].
        """
        for number, image in enumerate(images):
            if image.ndim != 2 or image.dtype != np.uint8 or not image.size:
                raise InputError(
                    f"image {number} must be uint8 [H, W], got {image.dtype} {list(image.shape)}; "
                    "read files with boneage_jax.data.files.read_grey"
                )
        squares = [fit_square(image, self.image_size) for image in images]
        found = []
        for at in range(0, len(images), self.batch_size):
            maps = self.probabilities(squares[at : at + self.batch_size])
            found += [
                self.finish(p_hand, *image.shape)
                for p_hand, image in zip(maps, images[at : at + self.batch_size], strict=True)
            ]
        return found

    def probabilities(self, squares: Sequence[np.ndarray]) -> np.ndarray:
        """Probabilities uint8 [n, S, S] (times 255) of at most `batch_size` fitted squares."""
        run, real = self._trained.run, len(squares)
        shape = (self.batch_size, self.image_size, self.image_size, 1)
        images = np.zeros(shape, np.uint8)
        images[:real, ..., 0] = np.stack(squares) if real else 0
        batch: dict[str, np.ndarray] = {
            "image": images,
            "mask": np.zeros(shape, np.uint8),
            "weight": np.zeros(self.batch_size, np.float32),
            "draw": np.arange(self.batch_size, dtype=np.uint32),
        }
        _, outputs = run.eval_step(self._variables, run.parallel.put_batch(batch))
        return run.parallel.fetch({"p_hand": outputs["p_hand"]})["p_hand"][:real]

    def finish(self, p_hand: np.ndarray, height: int, width: int) -> HandMaskFound:
        """From probabilities of the square, uint8 [S, S], to the mask at the image's size."""
        # Judged at the network's size: of a film of many megapixels that would cost seconds.
        check = check_mask(cut_padding(p_hand, height, width))
        mask = unfit(p_hand, height, width) > 127
        return HandMaskFound(clean_mask(mask, largest=self._largest, fill=self._fill), check)


def load_segmenter(
    workdir: str | os.PathLike[str],
    *,
    batch_size: int = _BATCH,
    largest: bool = True,
    fill: bool = True,
    devices: Sequence[jax.Device] | None = None,
) -> Segmenter:
    """The segmenter of a trained U-Net.

    Args:
      workdir: of a finished training of task hand_mask.
      batch_size: images per step, rounded up to a multiple of the number of devices.
      largest, fill: see `boneage_jax.data.masks.clean_mask`.
      devices: to run on, all by default.

    Raises:
      InputError: no run there, another task, or a damaged checkpoint.
    """
    count = len(devices) if devices is not None else jax.device_count()
    rounded = -(-batch_size // count) * count
    trained = load_trained(workdir, task="hand_mask", eval_batch_size=rounded, devices=devices)
    return Segmenter(trained, largest=largest, fill=fill)

"""Segments hands in radiographs with a trained U-Net, at the size of each radiograph."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from boneage_jax.data.files import fit_square, read_grey
from boneage_jax.data.masks import MaskCheck, check_mask, clean_mask, cut_padding, unfit
from boneage_jax.inference.arguments import (
    Image,
    checked_workdir,
    listed_images,
    rounded_batch_size,
)
from boneage_jax.inference.load_trained import Trained, load_trained
from boneage_jax.inference.network import Network
from boneage_jax.storage.shipped import best_network
from boneage_jax.storage.state import Tree

_BATCH = 16


class HandMaskFound(NamedTuple):
    """The mask of one radiograph, bool [H, W], and the check of its quality."""

    mask: np.ndarray
    check: MaskCheck


class Segmenter:
    """A trained U-Net as a function of radiographs; compiled once, on its first batch.

    Attributes:
      batch_size: images per step.
      image_size: height and width of the network's input in pixels.
      flops_per_mask: FLOPs of one mask.
      train_flops: FLOPs of the training of the U-Net.
    """

    def __init__(self, trained: Trained, *, largest: bool = True, fill: bool = True):
        """Builds the segmenter of a loaded network.

        Args:
          trained: see `boneage_jax.inference.load_trained.load_trained`.
          largest, fill: see `boneage_jax.data.masks.clean_mask`.
        """
        self._network, self._variables = trained.network, trained.variables
        self._largest, self._fill = largest, fill
        self.batch_size = self._network.batch_size
        self.image_size = self._network.info.image_size
        self._fit = str(self._network.config.data.fit)
        self.flops_per_mask = self._network.eval_flops // self.batch_size
        self.train_flops = trained.flops_spent

    @property
    def network(self) -> Network:
        """The network."""
        return self._network

    @property
    def variables(self) -> Tree:
        """{'params', 'batch_stats'} of the network."""
        return self._variables

    def fit(self, image: np.ndarray, stem: str = "") -> np.ndarray:
        """Returns the network's input for a radiograph, uint8 [S, S]; `stem` is not used."""
        del stem
        return fit_square(image, self.image_size, self._fit)

    def __call__(self, images: Image | Iterable[Image]) -> list[HandMaskFound]:
        """Segments the hand in radiographs.

        Args:
          images: paths of image files, or uint8 arrays, each [H, W] or [H, W, 1] of any size; an
            iterable of them, or a single one.

        Raises:
          InputError: an array that is not uint8 [H, W], or a file that cannot be read.
        """
        pixels = [
            read_grey(image) if isinstance(image, Path) else image
            for image in listed_images(images)
        ]
        squares = [self.fit(image) for image in pixels]
        found = []
        for at in range(0, len(pixels), self.batch_size):
            maps = self.probabilities(squares[at : at + self.batch_size])
            found += [
                self.finish(p_hand, *image.shape)
                for p_hand, image in zip(maps, pixels[at : at + self.batch_size], strict=True)
            ]
        return found

    def probabilities(self, squares: Sequence[np.ndarray]) -> np.ndarray:
        """Returns hand probabilities, uint8 [n, S, S] (times 255).

        Args:
          squares: 1 to `batch_size` images from `fit`, uint8 [S, S] each.
        """
        return self._network.read([self._variables], squares, keys=("p_hand",))[0]["p_hand"]

    def warm_up(self) -> None:
        """Compiles the network, so that later calls can be timed."""
        self.probabilities([np.zeros((self.image_size, self.image_size), np.uint8)])

    def finish(self, p_hand: np.ndarray, height: int, width: int) -> HandMaskFound:
        """Turns probabilities of the square, uint8 [S, S], into a mask of the image's size."""
        # Checked at the network's size: at many megapixels that would take seconds.
        check = check_mask(cut_padding(p_hand, height, width, self._fit))
        mask = unfit(p_hand, height, width, self._fit) > 127
        return HandMaskFound(clean_mask(mask, largest=self._largest, fill=self._fill), check)


def load_segmenter(
    workdir: str | os.PathLike[str] | None = None,
    *,
    batch_size: int = _BATCH,
    largest: bool = True,
    fill: bool = True,
    devices: Sequence[jax.Device] | None = None,
) -> Segmenter:
    """Loads the segmenter of a trained U-Net.

    Args:
      workdir: workdir of a finished training of task hand_mask, a local folder or gs://BUCKET/PATH;
        or a published U-Net: its name, its folder or hf:OWNER/REPO. None for the best that comes
        with the package.
      batch_size: images per step, rounded up to a multiple of the number of devices.
      largest, fill: see `boneage_jax.data.masks.clean_mask`.
      devices: devices to run on, all by default.

    Raises:
      InputError: no run in the workdir, another task, or a damaged checkpoint; or a wrong batch
        size.
    """
    rounded = rounded_batch_size(batch_size, devices)
    folder = best_network("hand_mask") if workdir is None else checked_workdir(workdir)
    trained = load_trained(folder, task="hand_mask", eval_batch_size=rounded, devices=devices)
    return Segmenter(trained, largest=largest, fill=fill)

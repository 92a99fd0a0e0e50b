"""Removes the background of radiographs, identically in preparation and in prediction.

The masks come from a folder of PNGs or from a U-Net's workdir. A prepared data set keeps a
`background/` folder beside its records, with the U-Net if there was one. Training copies it to its
workdir, so that `predict` treats new radiographs like the training images.
"""

import dataclasses
import json
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from boneage_jax.data.file_names import image_stem, is_hidden, normal_name
from boneage_jax.data.mask_cost import NOTE, MaskCost, read_note
from boneage_jax.data.mask_file import read_mask
from boneage_jax.data.masks import MODES, NO_HAND, remove_background
from boneage_jax.errors import InputError
from boneage_jax.storage.layout import copy_network, is_workdir
from boneage_jax.storage.shipped import find_network

if TYPE_CHECKING:
    from boneage_jax.inference.segmenter import Segmenter

_NETWORK = "unet"


class UnneededMasks(InputError):
    """Masks were given for a network that was trained on whole radiographs."""


class Background:
    """Removes the background of radiographs.

    Args:
      masks: a folder of masks STEM.png (0 is background), the workdir of a U-Net, or a published
        one: its name, its folder or hf:OWNER/REPO.
      mode: see `boneage_jax.data.masks.remove_background`.

    Raises:
      InputError: no such folder, no masks in it, an unknown mode, or a damaged workdir.
    """

    def __init__(self, masks: str | os.PathLike[str], mode: str):
        folder = Path(masks).expanduser()
        if not folder.is_dir():
            folder = find_network(masks) or folder
        if mode not in MODES:
            raise InputError(f"mask_mode={mode!r} must be one of {', '.join(MODES)}")
        if not folder.is_dir():
            raise InputError(f"masks={folder}: no such folder")
        self.mode, self._masks = mode, folder
        self._segmenter: Segmenter | None = None
        self._paths: dict[str, Path] = {}  # of the masks, by the stems of their images
        self._lock, self._images = threading.Lock(), 0
        self.empty: list[str] = []  # images whose mask has no hand; they keep their background
        self.doubtful: dict[str, str] = {}  # masks to be reviewed by a person, and why
        if is_workdir(folder):
            import jax

            from boneage_jax.inference.segmenter import load_segmenter

            # One image at a time, on one device: called from the decoding threads.
            devices = jax.local_devices()[:1]
            self._segmenter = load_segmenter(folder, batch_size=1, devices=devices)
            return
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() == ".png" and not is_hidden(path.name):
                other = self._paths.setdefault(image_stem(path), path)
                if other != path:
                    raise InputError(f"{other} and {path} are masks of one image; remove one")
        if not self._paths:
            raise InputError(
                f"masks={folder} holds neither PNG masks nor a U-Net's run; give the output of "
                "boneage_jax.segment or the workdir of a training of configs/seg.py"
            )

    @property
    def segmenter(self) -> "Segmenter | None":
        """The U-Net that makes the masks; None where they are files."""
        return self._segmenter

    def __call__(self, image: np.ndarray, stem: str, size: int) -> np.ndarray:
        """Returns a radiograph without its background, uint8 [size, size]; thread-safe.

        Args:
          image: radiograph, uint8 [H, W].
          stem: stem of its file name, by which its mask is found in a folder of masks.
          size: height and width of the result in pixels.

        Raises:
          InputError: the mask of that name is missing, damaged or of another size.
        """
        return remove_background(image, self.mask(image, stem), self.mode, size)

    def mask(self, image: np.ndarray, stem: str) -> np.ndarray:
        """Returns the mask of a hand, bool [H, W], empty if none was found; thread-safe.

        Args:
          image, stem: see `__call__`.

        Raises:
          InputError: see `__call__`.
        """
        if self._segmenter is not None:
            p_hand = self._segmenter.probabilities([self._segmenter.fit(image)])[0]
            mask, check = self._segmenter.finish(p_hand, *image.shape)
            reasons = "; ".join(check.reasons)
            if check.area < NO_HAND:
                mask = np.zeros_like(mask)  # better the whole image than a speck of it
        else:
            mask, reasons = self._read(stem, image.shape), ""
        with self._lock:
            self._images += 1
            if not mask.any():
                self.empty.append(stem)
            elif reasons:
                self.doubtful[stem] = reasons
        return mask

    def _read(self, stem: str, shape: tuple[int, ...]) -> np.ndarray:
        path = self._paths.get(normal_name(stem))
        if path is None:
            raise InputError(
                f"{self._masks / stem}.png: no such mask; run boneage_jax.segment on the image"
            )
        mask = read_mask(path)
        if mask.shape != shape:
            raise InputError(
                f"{path} is {mask.shape[1]}x{mask.shape[0]} pixels, its radiograph "
                f"{shape[1]}x{shape[0]}; make the mask at the image's size"
            )
        return mask

    def save(self, folder: Path) -> None:
        """Writes `folder`/background.json and, for a U-Net, a copy of its network."""
        folder.mkdir(parents=True, exist_ok=True)
        cost = MaskCost(self._images, *self._price())
        text = {
            "mode": self.mode,
            "cost": dataclasses.asdict(cost),
            "empty": sorted(self.empty),
            "doubtful": dict(sorted(self.doubtful.items())),
        }
        if self._segmenter is not None:
            copy_network(self._masks, folder / _NETWORK)
        (folder / NOTE).write_text(json.dumps(text, indent=1) + "\n")

    def _price(self) -> tuple[int, int]:
        """Returns the FLOPs per mask and of the U-Net's training; zeros if not recorded."""
        if self._segmenter is not None:
            return self._segmenter.flops_per_mask, self._segmenter.train_flops
        try:
            noted = json.loads((self._masks / "review" / "summary.json").read_text())
            return int(noted["flops_per_mask"]), int(noted["train_flops"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0, 0


def load_background(folder: Path, masks: str = "", *, wanted: str = "") -> Background | None:
    """Returns the background removal of a run; None if it was trained on whole radiographs.

    Args:
      folder: the `background/` folder of the workdir.
      masks: a folder of masks or a U-Net's workdir, used instead of the network kept there.
      wanted: the mode that the network was trained with, "" for whole radiographs.

    Raises:
      InputError: the mode needs masks and none are available, or the folder is damaged, missing or
        of another mode.
    """
    note = read_note(folder)
    found = note[0] if note else ""
    if found != wanted:
        raise InputError(
            f"{folder} {'says ' + found if found else 'is missing'}, but the network was trained "
            f"with {wanted or 'whole radiographs'}; copy the folder from the original workdir"
        )
    if note is None:
        if masks:
            raise UnneededMasks(
                "--masks: this network was trained on whole radiographs; leave it out"
            )
        return None
    source = masks or (folder / _NETWORK if (folder / _NETWORK).is_dir() else "")
    if not source:
        raise InputError(
            "this network was trained on radiographs without background, from a folder of masks; "
            "give --masks=DIR, their masks or the workdir of a U-Net"
        )
    return Background(source, note[0])

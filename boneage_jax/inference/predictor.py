"""Bone age of radiographs that have no label, by a trained network."""

import os
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from boneage_jax.data.files import fit_square
from boneage_jax.errors import InputError
from boneage_jax.inference.background_removal import load_background
from boneage_jax.inference.calibration import CALIBRATION, Calibration
from boneage_jax.storage.bucket import open_workdir
from boneage_jax.storage.workdir import Trained
from boneage_jax.training.ensemble import average, load_members

_BATCH = 16


class Predictor:
    """A trained network, or the mean of several, as a function of images; compiled once.

    Args:
      members: see `boneage_jax.training.ensemble.load_members`.
      folder: the workdir they belong to, with calibration and background.
      masks: for a network trained on radiographs without background: their masks or a U-Net's
        workdir, in place of the U-Net that the run keeps.
    """

    def __init__(self, members: Sequence[Trained], folder: Path, masks: str = ""):
        self._run, self._calibration = members[0].run, Calibration.load(folder / CALIBRATION)
        self._background = load_background(
            folder / "background", masks, wanted=self._run.facts.background
        )
        self._variables = [
            {"params": member.state.eval_params, "batch_stats": member.state.batch_stats}
            for member in members
        ]
        self.batch_size = int(self._run.config.eval_batch_size)
        self.image_size = self._run.facts.image_size

    def __call__(
        self,
        images: Sequence[np.ndarray] | np.ndarray,
        male: Sequence[int] | None = None,
        stems: Sequence[str] | None = None,
    ) -> dict[str, np.ndarray]:
        """Reads radiographs.

        Args:
          images: uint8 arrays, each [H, W] or [H, W, 1] of any size.
          male: 1, 0, or -1 for unknown, per image; all unknown if None. A network trained with
            the sex as an input uses its own estimate where it is unknown.
          stems: names of the images in a folder of masks, needed where `masks` is one.

        Returns:
          One array [n] each: `bone_age_months`, `low_months`, `high_months` (95 % interval),
          `p_male`, `accepted` (False where the image is unlike the radiographs of training).

        Raises:
          InputError: an image that is not uint8 [H, W], or `male` of another length.
        """
        names = list(stems) if stems is not None else [""] * len(images)
        if len(names) != len(images):
            raise InputError(f"stems must name each of the {len(images)} images")
        squares = [
            self._square(image, number, name)
            for number, (image, name) in enumerate(zip(images, names, strict=True))
        ]
        return self.read(squares, male)

    def read(
        self, squares: Sequence[np.ndarray], male: Sequence[int] | None = None
    ) -> dict[str, np.ndarray]:
        """As calling it, of images that `fit` made: uint8 [S, S] each."""
        sexes = np.full(len(squares), -1) if male is None else np.asarray(male)
        if sexes.shape != (len(squares),) or not np.isin(sexes, (-1, 0, 1)).all():
            raise InputError(f"male must hold 1, 0 or -1 for each of the {len(squares)} images")
        parts = [
            self._batch(squares[at : at + self.batch_size], sexes[at : at + self.batch_size])
            for at in range(0, len(squares), self.batch_size)
        ]
        keys = ("bone_age_months", "low_months", "high_months", "p_male", "accepted")
        if not parts:
            return {key: np.zeros(0, bool if key == "accepted" else np.float32) for key in keys}
        return {key: np.concatenate([part[key] for part in parts]) for key in keys}

    def _square(self, image: np.ndarray, number: int, stem: str) -> np.ndarray:
        image = np.asarray(image)
        if image.ndim == 3 and image.shape[-1] == 1:
            image = image[..., 0]
        if image.ndim != 2 or image.dtype != np.uint8 or not image.size:
            raise InputError(
                f"image {number} must be uint8 [H, W], got {image.dtype} {list(image.shape)}; "
                "read files with boneage_jax.data.files.read_grey"
            )
        return self.fit(image, stem)

    def fit(self, image: np.ndarray, stem: str) -> np.ndarray:
        """What the network reads of a radiograph uint8 [H, W]: uint8 [S, S]; thread-safe.

        Args:
          image: the radiograph.
          stem: of its file, by which a mask is found in a folder of masks.

        Raises:
          InputError: the folder of masks has no fitting mask.
        """
        if self._background is None:
            return fit_square(image, self.image_size)
        return self._background(image, stem, self.image_size)

    def _batch(self, squares: Sequence[np.ndarray], sexes: np.ndarray) -> dict[str, np.ndarray]:
        run, real = self._run, len(squares)
        images = np.zeros((self.batch_size, self.image_size, self.image_size, 1), np.uint8)
        images[:real, ..., 0] = np.stack(squares) if real else 0
        male = np.full(self.batch_size, -1, np.int32)
        male[:real] = sexes
        batch: dict[str, np.ndarray] = {
            "image": images,
            "male": male,
            "bone_age": np.zeros(self.batch_size, np.float32),
            "weight": np.zeros(self.batch_size, np.float32),
            "draw": np.arange(self.batch_size, dtype=np.uint32),
        }
        placed = run.parallel.put_batch(batch)
        outputs = [run.eval_step(variables, placed)[1] for variables in self._variables]
        rows = average([run.parallel.fetch(each) for each in outputs])
        rows = {key: values[:real] for key, values in rows.items()}
        calibration = self._calibration
        age = calibration.correction(rows["predicted_age"])
        near = calibration.distance(squares) <= calibration.max_distance
        return {
            "bone_age_months": age,
            "low_months": np.maximum(age - calibration.half_width, 0),
            "high_months": age + calibration.half_width,
            "p_male": rows["p_male"],
            "accepted": near & np.isfinite(age),
        }


def load_predictor(
    workdir: str | os.PathLike[str], *, batch_size: int = _BATCH, masks: str = ""
) -> Predictor:
    """The predictor of a trained bone-age network or ensemble.

    Args:
      workdir: of a finished training.
      batch_size: images per step, rounded up to a multiple of the number of devices.
      masks: see `Predictor`.

    Raises:
      InputError: no run there, another task, or a damaged checkpoint.
    """
    devices = jax.device_count()
    rounded = -(-batch_size // devices) * devices
    folder = open_workdir(workdir)
    members = load_members(folder, task="bone_age", eval_batch_size=rounded)
    return Predictor(members, folder, masks)

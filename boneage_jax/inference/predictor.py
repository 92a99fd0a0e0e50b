"""Predicts on unlabelled radiographs, with a trained network or the mean of several."""

import os
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from boneage_jax.config import load_config
from boneage_jax.data.files import fit_square
from boneage_jax.errors import InputError
from boneage_jax.inference.background_removal import load_background
from boneage_jax.inference.calibration import Calibration
from boneage_jax.inference.load_trained import Trained, average, load_members
from boneage_jax.inference.network import Rows, check_image
from boneage_jax.runtime.parallel import round_up
from boneage_jax.storage.bucket import open_workdir
from boneage_jax.storage.layout import BACKGROUND, CALIBRATION, CONFIG

_BATCH = 16
_AGE_COLUMNS = ("bone_age_months", "low_months", "high_months", "p_male", "accepted")


class Predictor:
    """A trained network, or the mean of several, as a function of images; compiled once.

    Attributes:
      columns: names of the results of a call.
      batch_size: images per step.
      image_size: height and width of the network's input in pixels.
    """

    def __init__(self, members: Sequence[Trained], folder: Path, masks: str = ""):
        """Builds the predictor of loaded networks.

        Args:
          members: see `boneage_jax.inference.load_trained.load_members`.
          folder: their workdir, with calibration and background.
          masks: for a network trained on radiographs without background: their masks or a U-Net's
            workdir, used instead of the U-Net stored with the run.

        Raises:
          InputError: calibration or masks are missing or damaged.
        """
        self._network = members[0].network
        info, task = self._network.info, self._network.task
        self._calibration = None
        self.columns: tuple[str, ...] = task.reported
        if task.name == "bone_age":
            self._calibration = Calibration.load(folder / CALIBRATION)
            self.columns = _AGE_COLUMNS
        self._background = load_background(folder / BACKGROUND, masks, wanted=info.background)
        self._variables = [member.variables for member in members]
        self.batch_size: int = self._network.batch_size
        self.image_size: int = info.image_size

    def __call__(
        self,
        images: Sequence[np.ndarray] | np.ndarray,
        male: Sequence[int] | None = None,
        stems: Sequence[str] | None = None,
    ) -> dict[str, np.ndarray]:
        """Runs the network on radiographs.

        Args:
          images: uint8 arrays, each [H, W] or [H, W, 1] of any size.
          male: 1, 0, or -1 for unknown, per image; None if all are unknown. A network with the sex
            as an input uses its own estimate for unknown ones.
          stems: names of the images in a folder of masks; required if `masks` is one.

        Returns:
          One array [n] each: `bone_age_months`, `low_months`, `high_months` (95 % interval),
          `p_male`, `accepted` (False if the image is unlike the radiographs of training). For a
          user-defined task, its reported predictions.

        Raises:
          InputError: an image that is not uint8 [H, W], or `male` of another length.
        """
        names = list(stems) if stems is not None else [""] * len(images)
        if len(names) != len(images):
            raise InputError(f"stems must name each of the {len(images)} images")
        squares = [
            self.fit(check_image(image, number), name)
            for number, (image, name) in enumerate(zip(images, names, strict=True))
        ]
        return self.read(squares, male)

    def read(
        self, squares: Sequence[np.ndarray], male: Sequence[int] | None = None
    ) -> dict[str, np.ndarray]:
        """Runs the network on images from `fit`, uint8 [S, S] each; otherwise like `__call__`."""
        sexes = np.full(len(squares), -1) if male is None else np.asarray(male)
        if sexes.shape != (len(squares),) or not np.isin(sexes, (-1, 0, 1)).all():
            raise InputError(f"male must hold 1, 0 or -1 for each of the {len(squares)} images")
        parts = [
            self._batch(squares[at : at + self.batch_size], sexes[at : at + self.batch_size])
            for at in range(0, len(squares), self.batch_size)
        ]
        if not parts:
            empty = {key: np.zeros(0, np.float32) for key in self.columns}
            return empty | ({"accepted": np.zeros(0, bool)} if "accepted" in empty else {})
        return {key: np.concatenate([part[key] for part in parts]) for key in self.columns}

    def fit(self, image: np.ndarray, stem: str) -> np.ndarray:
        """Returns the network's input for a radiograph, uint8 [S, S]; thread-safe.

        Args:
          image: uint8 [H, W].
          stem: stem of its file name, by which its mask is found in a folder of masks.

        Raises:
          InputError: the folder of masks has no fitting mask.
        """
        if self._background is None:
            return fit_square(image, self.image_size)
        return self._background(image, stem, self.image_size)

    def _batch(self, squares: Sequence[np.ndarray], sexes: np.ndarray) -> Rows:
        rows = average(self._network.read(self._variables, squares, {"male": sexes}))
        calibration = self._calibration
        if calibration is None:
            return rows
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
    """Loads the predictor of a trained network or ensemble.

    Args:
      workdir: workdir of a finished training run, a local folder or gs://BUCKET/PATH.
      batch_size: images per step, rounded up to a multiple of the number of devices.
      masks: see `Predictor`.

    Raises:
      InputError: no run in the workdir, a U-Net, or a damaged checkpoint.
    """
    rounded = round_up(batch_size, jax.device_count())
    folder = open_workdir(workdir)
    if load_config(folder / CONFIG).task == "hand_mask":
        raise InputError(
            f"{folder} holds a run of task 'hand_mask', not 'bone_age'; segment reads it"
        )
    members = load_members(folder, eval_batch_size=rounded)
    return Predictor(members, folder, masks)

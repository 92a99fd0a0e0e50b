"""Predicts on unlabelled radiographs, with a trained network or the mean of several."""

import copy
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from boneage_jax.config import load_config
from boneage_jax.data.file_names import image_stem
from boneage_jax.data.files import fit_square, read_radiograph
from boneage_jax.data.notes import is_too_small, of_pixels, too_small
from boneage_jax.errors import InputError
from boneage_jax.inference.age_notes import age_notes
from boneage_jax.inference.arguments import (
    Image,
    checked_sexes,
    checked_stems,
    checked_workdir,
    listed_images,
    rounded_batch_size,
)
from boneage_jax.inference.atlas_ages import probability_of_male
from boneage_jax.inference.background_removal import Background, load_background
from boneage_jax.inference.calibration import Calibration
from boneage_jax.inference.load_trained import Trained, average, load_members
from boneage_jax.inference.network import Network, Rows
from boneage_jax.inference.read_ahead import decoding_threads, read_ahead
from boneage_jax.storage.layout import BACKGROUND, CALIBRATION, CONFIG
from boneage_jax.storage.shipped import best_network, open_network
from boneage_jax.storage.state import Tree

if TYPE_CHECKING:
    from boneage_jax.inference.saliency import GradCam

BATCH_SIZE = 16  # images per step by default
_AGE_COLUMNS = ("bone_age_months", "low_months", "high_months", "p_male", "accepted")


class Predictor:
    """A trained network, or the mean of several, as a function of images; compiled once.

    Attributes:
      name: the network as the user named it.
      columns: names of the predictions of a call.
      batch_size: images per step.
      image_size: height and width of the network's input in pixels.
      takes_sex: whether the sex is an input of the network.
      judges_images: whether `accepted` is known; it takes some tens of images of training.
    """

    def __init__(
        self, members: Sequence[Trained], folder: Path, masks: str = "", *, name: str = ""
    ):
        """Builds the predictor of loaded networks.

        Args:
          members: see `boneage_jax.inference.load_trained.load_members`.
          folder: their workdir, with calibration and background.
          masks: for a network trained on radiographs without background: their masks or a U-Net's
            workdir, used instead of the U-Net stored with the run.
          name: the network as the user named it, by default its folder.

        Raises:
          InputError: calibration or masks are missing or damaged.
        """
        self.name = name or str(folder)
        self._network = members[0].network
        info, task = self._network.info, self._network.task
        self._calibration = None
        self.columns: tuple[str, ...] = task.reported
        self.takes_sex = task.name == "bone_age" and bool(self._network.config.model.sex_input)
        self.judges_images = False
        if task.name == "bone_age":
            self._calibration = Calibration.load(folder / CALIBRATION)
            self.judges_images = self._calibration.judges_images
            self.columns = _AGE_COLUMNS
        self._background = load_background(folder / BACKGROUND, masks, wanted=info.background)
        self._grad_cam: GradCam | None = None
        self._variables = [member.variables for member in members]
        self.batch_size: int = self._network.batch_size
        self.image_size: int = info.image_size
        self._square_by = str(self._network.config.data.fit)

    @property
    def network(self) -> Network:
        """The network that all members share."""
        return self._network

    @property
    def members(self) -> list[Tree]:
        """{'params', 'batch_stats'} of each network."""
        return self._variables

    @property
    def calibration(self) -> Calibration | None:
        """What `__call__` applies to the ages; None for a user-defined task."""
        return self._calibration

    def __call__(
        self,
        images: Image | Iterable[Image],
        male: Sequence[int] | None = None,
        stems: Sequence[str] | None = None,
    ) -> dict[str, np.ndarray]:
        """Runs the network on radiographs.

        Args:
          images: paths of image files, or uint8 arrays, each [H, W] or [H, W, 1] of any size; an
            iterable of them, or a single one.
          male: 1, 0, or -1 for unknown, per image; None if all are unknown. A network with the sex
            as an input uses its own estimate for unknown ones.
          stems: names of the images in a folder of masks, needed for arrays if `masks` is one;
            those of files are known.

        Returns:
          One array [n] each: `bone_age_months`, `low_months`, `high_months` (95 % interval),
          `p_male`, `accepted` (False if the image is unlike the radiographs of training; float NaN
          if too few of those are known). For a user-defined task, its reported predictions. `error`
          says why a file could not be read (its numbers are NaN), `note` what a user should know of
          an image; both "" otherwise.

        Raises:
          InputError: no such file, an array that is not uint8 [H, W], or `male` or `stems` of
            another length.
        """
        items = listed_images(images)
        stems = checked_stems(stems, len(items))
        results: list[InputError | str] = []
        parts: list[Rows] = []
        for of_batch, rows in self.batches(items, checked_sexes(male, len(items)), stems):
            results += of_batch
            parts += [rows] if rows else []
        failed = np.array([isinstance(result, InputError) for result in results], bool)
        found = {key: _spread([part[key] for part in parts], ~failed) for key in self.columns}
        if self.judges_images or (self._calibration is not None and not len(items)):
            found["accepted"] = found["accepted"] == 1
        texts = np.array([str(result) for result in results], str)
        return found | {"error": np.where(failed, texts, ""), "note": np.where(failed, "", texts)}

    def batches(
        self,
        items: Sequence[Path | np.ndarray],
        male: Sequence[int] | np.ndarray,
        stems: Sequence[str] | None = None,
        features: bool = False,
    ) -> Iterator[tuple[list[InputError | str], Rows]]:
        """Runs the network on many images in bounded memory; threads decode ahead of it.

        Args:
          items: files, or uint8 arrays [H, W].
          male: 1, 0 or -1 per image.
          stems: see `__call__`.
          features: yield the `features` of the backbones too, see `read`.

        Yields:
          For each batch, in order: for each image its error or its note, and the predictions of
          those without an error, [n, ...] each; {} if there are none.
        """

        def decode(number: int) -> tuple[np.ndarray, tuple[str, ...]]:
            item = items[number]
            if isinstance(item, np.ndarray):
                pixels, notes = item, of_pixels(item)
            else:
                pixels, notes = read_radiograph(item)
            stem = "" if isinstance(item, np.ndarray) else image_stem(item)
            square, said = self.put_right_and_fit(pixels, stem if stems is None else stems[number])
            return square, (*notes, *said)

        with decoding_threads() as pool:
            for results in read_ahead(range(len(items)), decode, self.batch_size, pool):
                good = [(n, r) for n, r in results if not isinstance(r, InputError)]
                squares, sexes = [r[0] for _, r in good], [male[n] for n, _ in good]
                rows = self.read(squares, sexes, features=features) if good else {}
                if rows and self.judges_images:
                    rows["accepted"] = rows["accepted"] & [not is_too_small(r[1]) for _, r in good]
                said = iter(rows.pop("note", ()))
                yield (
                    [
                        r
                        if isinstance(r, InputError)
                        else "; ".join(filter(None, (*r[1], next(said))))
                        for _, r in results
                    ],
                    rows,
                )

    def read(
        self,
        squares: Sequence[np.ndarray],
        male: Sequence[int] | None = None,
        *,
        features: bool = False,
    ) -> dict[str, np.ndarray]:
        """Runs the network on images from `fit`, uint8 [S, S] each; otherwise like `__call__`.

        With `features` there are also the pooled features of the backbones, averaged as the ages
        are over mirror images and views, those of the members side by side: float32 [n, F].

        Raises:
          InputError: features of a user-defined task, which has none.
        """
        if features and self._calibration is None:
            raise InputError("features are known of networks for bone age only")
        sexes, size = checked_sexes(male, len(squares)), self.batch_size
        parts = [
            self._batch(squares[at : at + size], sexes[at : at + size], features)
            for at in range(0, len(squares), size)
        ]
        if not parts:
            empty = {key: np.zeros(0, np.float32) for key in self.columns}
            return empty | {"note": np.zeros(0, str)}
        return {
            key: np.concatenate([part[key] for part in parts])
            for key in (*self.columns, "note", *(["features"] if features else []))
        }

    def uncalibrated(self, squares: Sequence[np.ndarray], male: Sequence[int] | np.ndarray) -> Rows:
        """Returns what the network reads, [n] each, `predicted_age` and `p_male` for bone ages.

        Args:
          squares: images from `fit`, uint8 [S, S] each.
          male: 1, 0 or -1 per image.
        """
        sexes, size = checked_sexes(male, len(squares)), self.batch_size
        parts = [
            self._read(squares[at : at + size], sexes[at : at + size])
            for at in range(0, len(squares), size)
        ]
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    def with_calibration(self, calibration: Calibration) -> "Predictor":
        """Returns a predictor of the same compiled network with another calibration."""
        other = copy.copy(self)
        other._calibration = calibration
        other.judges_images = calibration.judges_images
        return other

    def fit(self, image: np.ndarray, stem: str) -> np.ndarray:
        """Returns the network's input for a radiograph, uint8 [S, S]; thread-safe.

        One that is turned, inverted or small in its picture is put right first, see
        `boneage_jax.inference.view`.

        Args:
          image: uint8 [H, W].
          stem: stem of its file name, by which its mask is found in a folder of masks.

        Raises:
          InputError: the folder of masks has no fitting mask.
        """
        return self.put_right_and_fit(image, stem)[0]

    def put_right_and_fit(self, image: np.ndarray, stem: str) -> tuple[np.ndarray, tuple[str, ...]]:
        """Returns what `fit` does, and notes on what was put right; arguments as for `fit`.

        A note of `boneage_jax.data.notes.too_small` is on an image that must not be accepted.
        """
        tiny = too_small(image.shape, self.image_size)
        if self._background is not None:  # the view network knows radiographs without background
            return self._background(image, stem, self.image_size), tiny
        square, right, notes = self._put_right(image)
        if right is not image:
            square = fit_square(right, self.image_size, self._square_by)
        return square, (*tiny, *notes)

    def _put_right(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
        """Returns the square of an image as it is, the image put right, and notes on that."""
        view = self._calibration.view if self._calibration else None
        square = fit_square(image, self.image_size, self._square_by)
        return square, *(view.put_right(image, square) if view else (image, ()))

    def contributions(self, square: np.ndarray, male: int = -1) -> np.ndarray:
        """Returns where the age comes from, see `boneage_jax.inference.saliency`.

        Args:
          square: an image from `fit`, uint8 [S, S].
          male: 1, 0 or -1 for unknown.

        Raises:
          InputError: the network shows no feature map.
        """
        if self._grad_cam is None:
            from boneage_jax.inference.saliency import make_grad_cam

            self._grad_cam = make_grad_cam(self._network)
        return self._grad_cam(self._variables, square, male)

    def proportions(self, image: np.ndarray) -> float:
        """Returns the width over the height at which the result of `fit` shows no distortion."""
        if self._background is not None or self._square_by != "stretch":
            return 1.0
        right = self._put_right(image)[1]
        return right.shape[1] / right.shape[0]

    @property
    def background(self) -> Background | None:
        """What `fit` removes the background with, None for networks of whole radiographs."""
        return self._background

    def _batch(self, squares: Sequence[np.ndarray], sexes: np.ndarray, features: bool) -> Rows:
        keys = (*self._network.task.reported, *(["features"] if features else []))
        read = self._network.read(self._variables, squares, {"male": sexes}, keys)
        found = [rows.pop("features") for rows in read] if features else []
        rows = self.calibrated(average(read), squares, sexes)
        return rows | ({"features": np.concatenate(found, axis=1)} if features else {})

    def _read(self, squares: Sequence[np.ndarray], sexes: np.ndarray) -> Rows:
        return average(self._network.read(self._variables, squares, {"male": sexes}))

    def calibrated(self, rows: Rows, squares: Sequence[np.ndarray], sexes: np.ndarray) -> Rows:
        """Returns predictions and notes of images, given what the network reads in them.

        Args:
          rows: see `uncalibrated`.
          squares: the images, uint8 [S, S] each.
          sexes: 1, 0 or -1 per image.
        """
        calibration = self._calibration
        if calibration is None:
            return rows | {"note": np.zeros(len(squares), "U1")}
        given = sexes if self.takes_sex else np.full(len(squares), -1)
        p_male = probability_of_male(given, rows["p_male"])
        predicted = calibration.correction(rows["predicted_age"])
        nearest, within = calibration.possible(predicted)  # before an atlas makes all possible
        age = calibration.moved(nearest, p_male)
        reasons = [""] * len(squares)
        if self.judges_images:
            accepted = (calibration.distance(squares) <= calibration.max_distance) & within
            if calibration.view:
                seen, reasons = calibration.view.judge(squares)
                accepted &= seen
        else:
            accepted = np.full(len(squares), np.nan)
        low, high = calibration.interval(age)
        return {
            "bone_age_months": age,
            "low_months": low,
            "high_months": high,
            "p_male": rows["p_male"],
            "accepted": accepted,
            "note": age_notes(
                calibration, predicted, sexes, rows["p_male"], reasons, takes_sex=self.takes_sex
            ),
        }


def load_predictor(
    workdir: str | os.PathLike[str] | None = None, *, batch_size: int = BATCH_SIZE, masks: str = ""
) -> Predictor:
    """Loads the predictor of a trained network or ensemble.

    Args:
      workdir: name of a published network, its folder or hf:OWNER/REPO; or the workdir of a
        finished training run, a local folder or gs://BUCKET/PATH. None for the network that comes
        with the package and, of single networks, has the lowest error.
      batch_size: images per step, rounded up to a multiple of the number of devices.
      masks: see `Predictor`.

    Raises:
      InputError: no run in the workdir, a U-Net, or a damaged checkpoint; or a wrong batch size.
    """
    rounded = rounded_batch_size(batch_size)
    named = best_network() if workdir is None else checked_workdir(workdir)
    folder = open_network(named)
    if load_config(folder / CONFIG).task == "hand_mask":
        raise InputError(
            f"{folder} holds a run of task 'hand_mask', not 'bone_age'; segment reads it"
        )
    members = load_members(folder, eval_batch_size=rounded)
    return Predictor(members, folder, masks, name=str(named))


def _spread(parts: Sequence[np.ndarray], good: np.ndarray) -> np.ndarray:
    """Returns values of the `good` images, bool [n], as rows of [n, ...]; the others are NaN."""
    values = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    if good.all():
        return values
    dtype = np.result_type(values.dtype, np.float32)
    spread = np.full((len(good), *values.shape[1:]), np.nan, dtype)
    spread[good] = values
    return spread

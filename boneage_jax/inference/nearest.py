"""Finds the reference radiographs whose features are nearest to those of a radiograph."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from boneage_jax.data.find_files import find_images
from boneage_jax.errors import InputError
from boneage_jax.inference.patients import Patients
from boneage_jax.runtime.progress import progress

if TYPE_CHECKING:
    from boneage_jax.inference.predictor import Predictor


class Near(NamedTuple):
    """A reference radiograph: file, its age by the network in months, distance of its features."""

    file: Path
    age: float
    distance: float


class References:
    """The user's own radiographs, by the features of the network, with the sex of DICOM headers.

    Distances are Euclidean after each feature is divided by its standard deviation over the
    references, relative to the root mean square distance of two references. The deviation counts as
    at least the mean one: many features are the same in all of a few references, and the least
    change of one of these would outweigh all others.

    Args:
      folder: searched for images; those that cannot be read are left out.
      predictor: the network for bone age.

    Raises:
      InputError: no such folder, or fewer than two images in it can be read.
    """

    def __init__(self, folder: Path, predictor: "Predictor"):
        files = find_images(str(folder))
        self._files: list[Path] = []
        features, ages = [], []
        done = progress(total=len(files), desc="references", unit="image")
        waiting = iter(files)
        patients = Patients(files, {}, sex_matters=False)
        for results, rows in predictor.batches(files, patients, features=True):
            done.update(len(results))
            paths = [next(waiting) for _ in results]
            self._files += [
                path
                for path, result in zip(paths, results, strict=True)
                if not isinstance(result, InputError)
            ]
            if rows:
                features.append(rows["features"])
                ages.append(rows["bone_age_months"])
        done.close()
        if len(self._files) < 2:
            raise InputError(f"--references={folder}: fewer than two radiographs can be read")
        self._ages = np.concatenate(ages)
        found = np.concatenate(features).astype(np.float64)
        deviations = found.std(0)
        self._scale = np.maximum(deviations, max(float(deviations.mean()), 1e-6))
        self._features = found / self._scale
        # The mean squared distance of two different rows is twice their unbiased variance.
        self._unit = max(float(np.sqrt(2 * self._features.var(0, ddof=1).sum())), 1e-6)

    def nearest(self, file: Path, features: np.ndarray, count: int = 5) -> list[Near]:
        """Returns the references with the nearest features, the nearest first.

        Args:
          file: the radiograph itself, which does not count if it is one of the references.
          features: float32 [F].
          count: the most that are returned.
        """
        away = np.linalg.norm(self._features - features / self._scale, axis=1) / self._unit
        own = file.resolve()
        order = [n for n in np.argsort(away, kind="stable") if self._files[n].resolve() != own]
        return [Near(self._files[n], float(self._ages[n]), float(away[n])) for n in order[:count]]

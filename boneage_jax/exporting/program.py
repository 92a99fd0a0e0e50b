"""A trained network as one pure function: stored images in, what `predict` writes out."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

import boneage_jax
from boneage_jax.config import load_config
from boneage_jax.data.files import fit_square
from boneage_jax.data.inputs import batch_shapes
from boneage_jax.errors import InputError
from boneage_jax.exporting.image_statistics import distance
from boneage_jax.exporting.put_right import FITS, is_single_hand, put_right
from boneage_jax.exporting.without_background import resized, without_background
from boneage_jax.inference.arguments import checked_workdir
from boneage_jax.inference.atlas_ages import probability_of_male
from boneage_jax.inference.background_removal import Background
from boneage_jax.inference.calibration import Calibration
from boneage_jax.inference.network import Network, Rows
from boneage_jax.inference.predictor import Predictor, load_predictor
from boneage_jax.inference.saliency import CONTRIBUTIONS, explained_step, has_feature_map
from boneage_jax.inference.segmenter import Segmenter, load_segmenter
from boneage_jax.inference.view import View
from boneage_jax.json_file import read_bytes
from boneage_jax.models.registry import options_of
from boneage_jax.report.run_report import read_report
from boneage_jax.storage.layout import CONFIG, LICENSE, REPORT, SITE
from boneage_jax.storage.shipped import best_network, open_network
from boneage_jax.storage.state import Tree
from boneage_jax.tasks.registry import make_task

Arrays = dict[str, jax.Array]
_LONGEST_TERMS = 100_000  # bytes
TERMS = {
    "": "Not a medical device: for research and education, never for the care of a patient.",
    "rsna_bone_age": (
        "Trained on the RSNA Pediatric Bone Age Challenge 2017: academic research, education and "
        "other non-commercial use only, no attempt to identify anyone; cite Halabi et al., "
        "Radiology 2019;290:498-503, doi 10.1148/radiol.2018180736."
    ),
}

_PUT_RIGHT = (
    "turns by steps of 45 degrees, inversion, white frames and small hands, inside the graph"
)


@dataclasses.dataclass(frozen=True)
class Program:
    """A network with all that surrounds it, ready to be written in another format.

    Everything is inside: scaling, normalisation, flips, the average of members, standardisation,
    bias correction, interval, range and acceptance; the view network, and the U-Net that removes
    the background, where `puts_right` and `hand_mask` say so. Outside is only what `fit` does.

    Attributes:
      network: task and config.
      members: {'params', 'batch_stats'} of each network whose predictions are averaged.
      outputs: names of what is returned, the columns of `predict` or `p_hand`.
      takes_sex: whether the sex is an input.
      fit: turns a radiograph, uint8 [H, W], and its stem into an input, uint8 [S, S].
      prepare: the same, as `predict` gives it to the network: put right, without background.
      read: what the package itself reads from images of `prepare` and sexes: {output: [n, ...]}.
      metadata: texts about the network, for whoever finds the file alone.
      calibration: None unless the network reads bone ages.
      puts_right: whether turned, inverted, framed and small radiographs are put right inside.
      judges: whether the view network, where there is one, judges inside.
      hand_mask: the U-Net that removes the background inside, if any.
    """

    network: Network
    members: Sequence[Tree]
    outputs: tuple[str, ...]
    takes_sex: bool
    fit: Callable[[np.ndarray, str], np.ndarray]
    prepare: Callable[[np.ndarray, str], np.ndarray]
    read: Callable[[Sequence[np.ndarray], Sequence[int]], Rows]
    metadata: Mapping[str, str]
    calibration: Calibration | None = None
    puts_right: bool = False
    judges: bool = True
    hand_mask: "Program | None" = None

    @property
    def image_size(self) -> int:
        """Height and width of the images in pixels."""
        return self.network.info.image_size

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the arguments: image, and male where the sex is an input."""
        return ("image", "male") if self.takes_sex else ("image",)

    @property
    def explains(self) -> bool:
        """Whether the contributions of places to the age can be an output."""
        return self.calibration is not None and has_feature_map(self.network)

    def shapes(self, batch: Any) -> list[jax.ShapeDtypeStruct]:
        """Returns shapes and dtypes of the arguments.

        Args:
          batch: number of images, or a symbolic dimension.
        """
        known = batch_shapes(batch, self.image_size, self.network.task)
        return [known[name] for name in self.inputs]

    def function(self, explained: bool = False, **model_options: Any) -> Callable[..., Arrays]:
        """Builds the function `(members, image, male=None) -> {output: [B, ...]}`.

        image is uint8 [B, S, S, 1], male int32 [B]: 1, 0, or -1 for unknown.

        Args:
          explained: also return `contributions`, float32 [B, h, w], see
            `boneage_jax.inference.saliency.explained_step`; only if `explains`.
          **model_options: options of the model instead of those of the config, see
            `boneage_jax.create_model`; those that the model does not have are left out.
        """
        network = with_options(self.network, **model_options)
        step = explained_step(network) if explained else network.local_step()
        task = network.task

        def predict(members: Sequence[Tree], image: jax.Array, male: Any = None) -> Arrays:
            batch = {
                name: jnp.zeros(shape.shape, shape.dtype)
                for name, shape in batch_shapes(image.shape[0], self.image_size, task).items()
            }
            if self.puts_right:
                image = put_right(self._view, image, self.network.config.data.fit)
            if self.hand_mask:
                image = self.hand_mask.applied(image, **model_options)
            batch["image"] = image
            if "male" in batch:
                # Any other code is no sex, where predict refuses it: 2 would be twice as male as 1.
                known = batch["male"] - 1 if male is None else male
                batch["male"] = jnp.where((known == 0) | (known == 1), known, -1)
            rows = [step(variables, batch)[1] for variables in members]
            names = task.reported if self.calibration else self.outputs
            found = {name: _mean([row[name] for row in rows]) for name in names}
            if self.calibration:
                found = self._calibrated(found, image, batch["male"])
            if explained:
                found[CONTRIBUTIONS] = _mean([row[CONTRIBUTIONS] for row in rows])
            return found

        return predict

    def _calibrated(self, rows: Arrays, image: jax.Array, male: jax.Array) -> Arrays:
        calibration: Any = self.calibration  # its methods take arrays of JAX as well
        p_male = probability_of_male(male, rows["p_male"])
        nearest, within = calibration.possible(calibration.correction(rows["predicted_age"]))
        age = calibration.moved(nearest, p_male)
        low, high = calibration.interval(age)
        found = {
            "bone_age_months": age,
            "low_months": low,
            "high_months": high,
            "p_male": rows["p_male"],
        }
        if "accepted" in self.outputs:
            away = distance(image, calibration.mean, calibration.precision)
            found["accepted"] = (away <= calibration.max_distance) & within
            if self.judges and calibration.view:
                found["accepted"] &= is_single_hand(calibration.view, image)
        return found

    def applied(self, image: jax.Array, **model_options: Any) -> jax.Array:
        """Returns images, uint8 [B, S, S, 1], without what this U-Net does not take for a hand."""
        square = resized(image, self.image_size)
        found = self.function(**model_options)(self.members, square)
        return without_background(image, found["p_hand"])

    @property
    def _view(self) -> View:
        assert self.calibration and self.calibration.view
        return self.calibration.view

    def prepared(self, judges: bool = True) -> "Program":
        """Returns the program that is given what `prepare` returns.

        Args:
          judges: whether the view network judges it.
        """
        metadata = {name: text for name, text in self.metadata.items() if name != "puts_right"}
        if self.hand_mask:
            metadata["background"] = self.network.info.background
        return dataclasses.replace(
            self,
            fit=self.prepare,
            metadata=metadata,
            puts_right=False,
            judges=judges,
            hand_mask=None,
        )


def load_program(workdir: str | os.PathLike[str] | None) -> Program:
    """Loads a trained network, an ensemble or a U-Net.

    Args:
      workdir: workdir of a finished training, a local folder or gs://BUCKET/PATH; a published
        network by its folder, name or hf:OWNER/REPO; None for the best of these at hand.

    Raises:
      InputError: no run in the workdir, a training that has not ended, or a damaged file.
    """
    folder = open_network(best_network() if workdir is None else checked_workdir(workdir))
    report = read_report(folder) if (folder / REPORT).is_file() else {}
    if load_config(folder / CONFIG).task == "hand_mask":
        if not report:
            raise InputError(
                f"{folder / REPORT} is missing: the training in this workdir has not ended; "
                "start it again"
            )
        program = mask_program(load_segmenter(folder), report)
    else:
        program = age_program(load_predictor(folder), report)
    return dataclasses.replace(program, metadata=dict(program.metadata) | _of_folder(folder))


def _of_folder(folder: Path) -> dict[str, str]:
    """Returns what lies beside a published network: its terms, and whether it is calibrated."""
    found = {}
    if (folder / LICENSE).is_file():
        text = read_bytes(folder / LICENSE, _LONGEST_TERMS).decode("utf-8", errors="replace")
        found["terms"] = f"{TERMS['']} {' '.join(text.split())}"
    if (folder / SITE).is_file():
        found["calibrated"] = "to a site; validation_error is that of the network before"
    return found


def age_program(predictor: Predictor, report: Mapping[str, Any]) -> Program:
    """Returns the program of bone ages, or of a user-defined task.

    Args:
      predictor: the network or networks.
      report: contents of their report.json, for the metadata; may be empty.
    """
    outputs = predictor.columns
    if not predictor.judges_images:
        outputs = tuple(name for name in outputs if name != "accepted")
    network, takes_sex = predictor.network, predictor.takes_sex
    square_by = str(network.config.data.fit)
    calibration = predictor.calibration
    has_view = calibration is not None and calibration.view is not None
    puts_right = has_view and predictor.background is None and square_by in FITS
    hand_mask = _hand_mask(predictor.background)
    metadata = _metadata(network, len(predictor.members), outputs, takes_sex, report)
    metadata |= {"puts_right": _PUT_RIGHT} if puts_right else {}
    if hand_mask:
        metadata |= {"background": f"{network.info.background}, inside the graph", "fit": "pad"}

    def fit(image: np.ndarray, stem: str) -> np.ndarray:
        del stem
        return fit_square(image, predictor.image_size, metadata["fit"])

    return Program(
        network,
        predictor.members,
        outputs,
        takes_sex,
        fit if puts_right or hand_mask else predictor.fit,
        predictor.fit,
        predictor.read,
        metadata,
        calibration,
        puts_right,
        hand_mask=hand_mask,
    )


def _hand_mask(background: Background | None) -> Program | None:
    """Returns the U-Net that can remove the background inside a graph; None if none can."""
    if background is None or background.mode != "multiply" or background.segmenter is None:
        return None
    program = mask_program(background.segmenter, {})
    return program if program.metadata["fit"] == "pad" else None


def mask_program(segmenter: Segmenter, report: Mapping[str, Any]) -> Program:
    """Returns the program of a U-Net: its probabilities times 255, uint8 [batch, S, S]."""
    size, outputs = segmenter.batch_size, ("p_hand",)

    def read(squares: Sequence[np.ndarray], male: Sequence[int]) -> Rows:
        del male
        starts = range(0, len(squares), size)
        parts = [segmenter.probabilities(squares[at : at + size]) for at in starts]
        return {"p_hand": np.concatenate(parts)}

    network, variables = segmenter.network, [segmenter.variables]
    metadata = _metadata(network, 1, outputs, False, report)
    fit = segmenter.fit
    return Program(network, variables, outputs, False, fit, fit, read, metadata)


def with_options(network: Network, **options: Any) -> Network:
    """Returns a network whose model has other options, and the same variables.

    Args:
      network: any network.
      **options: see `Program.function`; dtype is that of the computation.
    """
    config = ConfigDict(network.config.to_dict())
    if "dtype" in options:
        config.model.dtype = options.pop("dtype")
    known = options_of(config.model.name)
    own = dict(config.model.get("options", {}))
    own |= {name: value for name, value in options.items() if name in known}
    config.model.options = ConfigDict(own)
    return dataclasses.replace(network, config=config, task=make_task(config, network.info, None))


def _mean(values: Sequence[jax.Array]) -> jax.Array:
    return values[0] if len(values) == 1 else sum(values[1:], values[0]) / len(values)


def _metadata(
    network: Network,
    members: int,
    outputs: Sequence[str],
    takes_sex: bool,
    report: Mapping[str, Any],
) -> dict[str, str]:
    """Returns texts about a network; unknown ones are absent."""
    config, info = network.config, network.info
    data = config.data
    inputs = [f"image: uint8 [batch, {info.image_size}, {info.image_size}, 1]"]
    inputs += ["male: int32 [batch], 1 male, 0 female, -1 unknown"] if takes_sex else []
    found = {
        "version": f"boneage_jax {boneage_jax.__version__}",
        "task": config.task,
        "model": config.model.name,
        "members": str(members),
        "inputs": "; ".join(inputs),
        "columns": ",".join(outputs),
        "image_size": str(info.image_size),
        "fit": data.get("fit", "pad"),
        "background": info.background or "kept",
        "normalize": f"{config.normalize}, inside the graph",
        "test_flips": str(config.test_flips),
        "test_zooms": config.get("test_zooms", ""),
        "test_atlas": f"{config.test_atlas:g}" if config.get("test_atlas") else "",
        "data": f"{data.name}/{data.config}",
        "validation_error": _validation_error(report),
        "terms": " ".join(dict.fromkeys((TERMS.get(data.name, ""), TERMS[""]))).strip(),
    }
    return {key: text for key, text in found.items() if text}


def _validation_error(report: Mapping[str, Any]) -> str:
    """Returns the error that a report states, as a text; "" if it states none."""
    split = report.get("dataset", {}).get("split", "")
    if split != "validation":
        return ""
    count = report["dataset"].get("splits", {}).get(split, 0)
    if "age" in report:
        age = report["age"]
        return (
            f"mean absolute error {age['mae']:.2f} months (95 % interval {age['mae_low']:.2f} to "
            f"{age['mae_high']:.2f}) on {count} images"
        )
    if "mask" in report:
        return f"Dice {report['mask']['pooled']['f1']:.4f} over all pixels of {count} images"
    return ""

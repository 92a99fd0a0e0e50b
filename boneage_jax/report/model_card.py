"""Model card of a trained network, from its report.json."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from boneage_jax.errors import InputError
from boneage_jax.report.page import readable_flops

_TEMPLATES = Path(__file__).parent / "templates"
_PACKAGE = "boneage_jax"


class _Data(NamedTuple):
    """What a card says of a data set: description, limits of it, citation, terms."""

    title: str
    description: str
    limits: tuple[str, ...]
    citation: str
    license_file: str


_RSNA = _Data(
    "RSNA Pediatric Bone Age Challenge 2017",
    "Radiographs of the left hand of children and adolescents from two hospitals in the USA "
    "(Halabi et al. 2019), each with the skeletal age of a clinical reading and the sex.",
    (
        "Validation ages are single clinical readings. Those of the official test set are the mean "
        "of six, and errors there are lower: results on the two are not comparable.",
        "Two hospitals of one country, and one standard of reading (Greulich and Pyle). Other "
        "populations, devices and readers may shift the age by months; `calibrate` measures and "
        "corrects that on radiographs of your own.",
        "Few children below 3 years are among the radiographs of training; see the errors by age.",
    ),
    "Halabi SS, Prevedello LM, Kalpathy-Cramer J, et al. The RSNA Pediatric Bone Age Machine "
    "Learning Challenge. *Radiology* 2019;290:498–503. doi:10.1148/radiol.2018180736",
    "weights_license_rsna.txt",
)
_PHANTOM = _Data(
    "phantom hands",
    "Hands that this package draws. No radiograph of a person was used.",
    ("A network that has seen drawings only does not read radiographs of persons.",),
    "",
    "weights_license_own.txt",
)
_KNOWN = {"rsna_bone_age": _RSNA, "hand_phantom": _PHANTOM}

_AGE_LIMITS = (
    "The interval holds the age of 95 % of radiographs like those of the validation split; of "
    "others it may hold fewer.",
    "`accepted` tells whether an image looks like the radiographs of training. It does not find "
    "diseases of the bones, or hands in a wrong position.",
)


_MASK_LIMITS = (
    "Hands with casts, rings or metal, several hands, and turned or inverted radiographs are rare "
    "or absent among the images of training; look at the masks before they are relied on.",
)


_CALIBRATED = "**Calibrated** to "


def license_text(dataset: str) -> str:
    """Returns the terms of weights that were trained on a data set of this name."""
    known = _KNOWN.get(dataset)
    file = known.license_file if known else "weights_license_own.txt"
    return (_TEMPLATES / file).read_text(encoding="utf-8")


def model_card(
    name: str, report: Mapping[str, Any], *, pixels: int, members: int = 1, data: str = ""
) -> str:
    """Returns the model card of a network as Markdown with a YAML header, by huggingface_hub.

    Args:
      name: name of the network.
      report: contents of its report.json.
      pixels: height and width of what is stored; the network reads `data.height` x `data.width` of
        its config, if these are given.
      members: number of networks that are averaged.
      data: what the card says of a data set that this package does not know; by default its name.

    Raises:
      InputError: huggingface_hub is not installed, or the report lacks a group.
    """
    try:
        from huggingface_hub import EvalResult, ModelCard, ModelCardData
    except ImportError as error:
        raise InputError(
            "a model card needs the package huggingface_hub; pip install 'boneage_jax[hf]'"
        ) from error
    try:
        dataset, compute, config = (report[key] for key in ("dataset", "compute", "config"))
        of_ages = "age" in report
        metric, value = ("mae", report["age"]["mae"]) if of_ages else _mask_metric(report)
        known = _KNOWN.get(dataset["name"]) or _own(dataset["name"], data)
        card = ModelCard.from_template(
            ModelCardData(
                library_name=_PACKAGE,
                license="other",
                license_name=f"{name}-terms",
                license_link="LICENSE",
                pipeline_tag=None if of_ages else "image-segmentation",
                tags=["bone-age" if of_ages else "hand-mask", "radiograph", "jax"],
                model_name=name,
                eval_results=[
                    EvalResult(
                        task_type="image-regression" if of_ages else "image-segmentation",
                        dataset_type=dataset["name"],
                        dataset_name=known.title,
                        dataset_split=dataset["split"],
                        metric_type=metric,
                        metric_value=round(float(value), 4),
                    )
                ],
            ),
            template_path=str(_TEMPLATES / "model_card.md"),
            name=name,
            command="predict" if of_ages else "segment --output=MASKS",
            summary=_summary(known, of_ages),
            intended=_INTENDED[of_ages],
            not_intended=_NOT_INTENDED[of_ages],
            network=_network(config, compute, pixels, members),
            data=_data(known, dataset),
            metrics="\n\n".join(
                [*_metrics(report, dataset["split"]), *map(_once, report.get("evaluations", []))]
            ),
            stresses=_stresses(report.get("stress")),
            limits=[*known.limits, *(_AGE_LIMITS if of_ages else _mask_limits(dataset))],
            citation=known.citation,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"report.json does not have what a model card needs ({error!r}); train again"
        ) from error
    return str(card).rstrip() + "\n"


_INTENDED = {
    True: "Research on bone age: measuring skeletal age in months on radiographs of the hand of "
    "children and adolescents, as a starting point of networks of one's own, and for teaching.",
    False: "Research: finding the hand in a radiograph, to remove the background.",
}
_NOT_INTENDED = {
    True: "ages of adults; radiographs of other parts of the body; finding out who a\n"
    "person is, or their sex, from a radiograph.",
    False: "radiographs of other parts of the body; finding out who a person is from a radiograph.",
}


def site_note(card: str, site: Mapping[str, Any]) -> str:
    """Returns a card that says of what site the network was calibrated to.

    Args:
      card: of the network before, or one with such a note.
      site: contents of site_calibration.json.

    Raises:
      InputError: `site` lacks a part.
    """
    try:
        line, errors = site["correction"], [site[when]["mae"] for when in ("before", "after")]
        text = (
            f"{_CALIBRATED}{site['images']} radiographs of a site by `calibrate`: age = "
            f"{line['slope']:.3f} x age {line['intercept']:+.1f} months, with an interval and "
            f"limits of its own. The mean absolute error there was {errors[0]:.2f} months before, "
            f"{errors[1]:.2f} after, cross-fitted. All results below are of the network before; "
            "name this folder, not that network, to read with the calibration.\n"
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"site_calibration.json is damaged ({error!r}); calibrate again"
        ) from error
    before, heading, rest = card.partition("## Use\n")
    before = before.partition(_CALIBRATED)[0].rstrip("\n")
    return f"{before}\n\n{text}\n{heading}{rest}"


def _own(name: str, description: str) -> _Data:
    description = description or f"A data set of the publisher's, {name}."
    title = "radiographs with hand masks" if name == "hand_mask" else name
    return _Data(title, description, (), "", "weights_license_own.txt")


def _mask_limits(dataset: Mapping[str, Any]) -> tuple[str, ...]:
    splits, split = dataset["splits"], dataset["split"]
    few = f"Trained on {splits['train']:,} images and measured on {splits[split]:,}."
    return (few, *_MASK_LIMITS)


def _stresses(stress: Mapping[str, Any] | None) -> str:
    """Returns a table of errors of changed images, "" where none were read."""
    if not stress:
        return ""
    rows = [
        (row["what"], f"{row['mae']:.2f}", f"{row['change']:+.2f}", f"{row['accepted']:.1%}")
        for row in stress["rows"]
    ]
    table = _table(
        ("change", "mean absolute error", "against the image as it is", "accepted"), rows
    )
    return f"{stress['images']:,} images of the split, changed and read again; months.\n\n{table}"


def _mask_metric(report: Mapping[str, Any]) -> tuple[str, float]:
    return "iou", report["mask"]["pooled"]["iou"]


def _summary(known: _Data, of_ages: bool) -> str:
    if of_ages:
        return (
            "Bone age in months, with an interval, and the probability of a male hand, from a "
            f"radiograph of the hand. Trained on: {known.title}."
        )
    return f"A mask of the hand in a radiograph. Trained on: {known.title}."


def _input(config: Mapping[str, Any], pixels: int) -> str:
    data = config.get("data") or {}
    height, width = data.get("height") or pixels, data.get("width") or pixels
    stored = f", from squares of {pixels}" if (height, width) != (pixels, pixels) else ""
    return f"{height} x {width} pixels, grey{stored}"


def _network(config: Mapping[str, Any], compute: Mapping[str, Any], pixels: int, n: int) -> str:
    model = config["model"]
    sex = "; the sex is an input, and estimated where it is unknown" if model["sex_input"] else ""
    several = f"{n} networks whose ages are averaged, each " if n > 1 else ""
    rows = [
        ("architecture", f"{several}{model['name']}{sex}"),
        ("input", _input(config, pixels)),
        ("parameters", f"{compute['parameters']:,}"),
        ("FLOPs per image", readable_flops(compute["flops_per_prediction"])),
        ("FLOPs of training", readable_flops(compute["train_flops"])),
        ("trained on", _hardware(compute.get("hardware", {}))),
    ]
    return _table(("", ""), rows)


def _hardware(hardware: Mapping[str, Any]) -> str:
    device = str(hardware.get("device", "unknown hardware"))
    cores = hardware.get("cpu_cores")
    return f"{device}, {cores} cores" if hardware.get("platform") == "cpu" and cores else device


def _data(known: _Data, dataset: Mapping[str, Any]) -> str:
    rows = [(name, f"{count:,}") for name, count in dataset["splits"].items()]
    opened = dataset.get("test_openings", 0)
    test = f"was evaluated {opened} times" if opened else "was never evaluated"
    table = _table(("split", "images"), rows)
    return f"{known.description}\n\n{table}\n\nThe test split {test} with this network."


def _atlas(age: Mapping[str, Any]) -> str:
    if "mae_before_atlas" not in age:
        return ""
    return (
        " Ages are moved to those that readers of the training set wrote down "
        f"(config.test_atlas); before that the error is {age['mae_before_atlas']:.2f}."
    )


def _metrics(report: Mapping[str, Any], split: str) -> list[str]:
    parts = []
    if age := report.get("age"):
        parts += [
            f"On the {split} split, in months: mean absolute error **{age['mae']:.2f}** (95 % "
            f"interval {age['mae_low']:.2f} to {age['mae_high']:.2f}), root of the mean squared "
            f"error {age['rmse']:.2f}, mean error {age['bias']:+.2f}; {age['within_6']:.0%} are "
            f"within 6 months and {age['within_12']:.0%} within 12. Predicting the mean age of "
            f"training for everyone gives {age['baseline_mae']:.2f}.{_atlas(age)}",
            _table(
                ("sex", "images", "mean absolute error", "mean error"),
                [(sex, *_errors(row)) for sex, row in age["by_sex"].items()],
            ),
            _table(
                ("age in months", "images", "mean absolute error", "mean error"),
                [(f"{row['low']}–{row['high']}", *_errors(row)) for row in age["by_age"]],
            ),
        ]
    if sex := report.get("sex"):
        parts.append(f"Sex from the radiograph alone: accuracy {sex['accuracy']:.3f}.")
    if mask := report.get("mask"):
        pooled, each = mask["pooled"], mask["per_image"]
        parts.append(
            f"On the {split} split: intersection over union **{pooled['iou']:.4f}** and Dice "
            f"{pooled['f1']:.4f} of all pixels together; Dice of the worst image "
            f"{each['f1_worst']:.4f}, of the median image {each['f1_median']:.4f}."
        )
    return parts


def _once(part: Mapping[str, Any]) -> str:
    """Returns the results of one more evaluation, without their tables."""
    age, sex, mask = (part.get(key) for key in ("age", "sex", "mask"))
    found = []
    if age:
        found.append(
            f"mean absolute error **{age['mae']:.2f}** months ({age['mae_low']:.2f} to "
            f"{age['mae_high']:.2f}), mean error {age['bias']:+.2f}"
        )
    if sex:
        found.append(f"accuracy of the sex {sex['accuracy']:.3f}")
    if mask:
        found.append(f"intersection over union {mask['pooled']['iou']:.4f}")
    images = f" ({part['images']:,} images)" if part.get("images") else ""
    return f"On the {part['split']} split{images}: {'; '.join(found)}."


def _errors(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return f"{row['n']}", f"{row['mae']:.2f}", f"{row['bias']:+.2f}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)

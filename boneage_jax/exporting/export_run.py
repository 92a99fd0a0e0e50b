"""Writes a trained network as a file for other software."""

import dataclasses
import importlib.util
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np

from boneage_jax.data.file_names import IMAGE_SUFFIXES
from boneage_jax.data.find_files import find_images
from boneage_jax.errors import InputError
from boneage_jax.exporting.comparing import batches, compare
from boneage_jax.exporting.onnx_graph import (
    PRECISIONS,
    to_onnx,
    with_float16_weights,
    with_int8_convolutions,
)
from boneage_jax.exporting.program import Program, load_program
from boneage_jax.exporting.sample import Sample, take_sample
from boneage_jax.exporting.stablehlo import reader, to_stablehlo
from boneage_jax.exporting.web_page import build_page, check_page
from boneage_jax.storage.safe_write import (
    check_replaces_nothing,
    check_writable,
    in_one_piece,
    write_text,
    writing,
)

if TYPE_CHECKING:
    import onnx

EXTRA = "boneage_jax[export]"


@dataclasses.dataclass(frozen=True)
class Request:
    """What is to be written.

    Attributes:
      workdir: see `boneage_jax.exporting.program.load_program`.
      output: file to write.
      precision: float32, float16 or int8; of ONNX files.
      radiographs: image files, folders or globs, see `boneage_jax.exporting.sample`.
      prepared: the file is given radiographs that are put right already.
    """

    workdir: str | None
    output: Path
    precision: str = "float32"
    radiographs: Sequence[str] = ()
    prepared: bool = False


def check_request(form: str, request: Request) -> None:
    """Checks what can be checked before anything is loaded.

    Raises:
      InputError: a package is missing, the output cannot be written, or a precision that the format
        does not have.
    """
    if form not in FORMATS:
        raise InputError(f"--format={form} must be one of {', '.join(FORMATS)}")
    for package in _PACKAGES[form]:
        if importlib.util.find_spec(package) is None:
            raise InputError(f"--format={form} needs the package {package}; pip install '{EXTRA}'")
    if form != "stablehlo" and not _ONNX_JAX.match(jax.__version__):
        raise InputError(
            f"--format={form} needs jax 0.10, as jax2onnx does, not {jax.__version__}; pip install "
            f"'{EXTRA}', or use --format=stablehlo"
        )
    if request.precision not in PRECISIONS:
        raise InputError(f"--precision={request.precision} must be one of {', '.join(PRECISIONS)}")
    if request.precision != "float32" and form != "onnx":
        raise InputError(f"--precision is of --format=onnx alone; leave it out of {form}")
    output = request.output
    if output.is_dir():
        raise InputError(f"--output={output} is a folder; name a file")
    if not output.absolute().parent.is_dir():
        raise InputError(f"--output={output}: there is no folder {output.parent}")
    if output.suffix.lower() in IMAGE_SUFFIXES:
        raise InputError(f"--output={output} is the name of an image; name the file to write")
    if request.radiographs:
        check_replaces_nothing(output, "--output", find_images(request.radiographs))
    check_writable(output.absolute().parent)


def export(form: str, request: Request) -> list[str]:
    """Writes the file, compares it with the network and returns lines for the user.

    Args:
      form: a key of `FORMATS`.
      request: what to write; checked by `check_request`.

    Raises:
      InputError: the workdir holds no finished training, or a network that the format cannot hold;
        nothing is written then.
    """
    program = load_program(request.workdir)
    if request.prepared:
        if program.network.config.task == "hand_mask":
            raise InputError(
                "--prepared is for bone ages: nothing puts right what a U-Net is given"
            )
        program = program.prepared()
    content, lines = FORMATS[form](program, request)
    with writing(request.output), in_one_piece(request.output) as part:
        part.write_bytes(content)
    if form == "stablehlo":  # which has no place for texts
        beside = request.output.with_name(request.output.name + ".json")
        with writing(beside):
            write_text(beside, json.dumps(dict(program.metadata), indent=1) + "\n")
        lines.append(f"{beside}: what the file is, its inputs and terms")
    return [f"{request.output}: {len(content) / 1e6:.1f} MB, {lines[0]}", *lines[1:]]


def _onnx(program: Program, request: Request) -> tuple[bytes, list[str]]:
    sample = take_sample(program, request.radiographs)
    if request.precision == "int8" and not sample.real:
        raise InputError(
            "--precision=int8 is fitted on radiographs, and the data of the training is not "
            "prepared here; name some: export ... --precision=int8 FOLDER"
        )
    model = to_onnx(program)
    if request.precision == "float16":
        model = with_float16_weights(model)
    if request.precision == "int8":
        fitted, sample = _halves(sample)
        model = with_int8_convolutions(model, batches(program, fitted))
    opset = model.opset_import[0].version
    first = f"ONNX opset {opset}, {request.precision}; {_interface(program)}"
    lines = [first, *_compare_onnx(program, model, sample), *_left_out(program)]
    return model.SerializeToString(), lines


def _web(program: Program, request: Request) -> tuple[bytes, list[str]]:
    check_page(program)
    # Its scripts put radiographs right before they are squares, and judge them.
    program = program.prepared(judges=False)
    sample = take_sample(program, request.radiographs)
    model = with_float16_weights(to_onnx(program, explained=program.explains))
    page = build_page(program, model)
    lines = ["open it in a browser; it needs no network", *_compare_onnx(program, model, sample)]
    return page, lines


def _compare_onnx(program: Program, model: "onnx.ModelProto", sample: Sample) -> list[str]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )

    def run(inputs: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
        return session.run(list(program.outputs), dict(inputs))

    return compare(program, run, sample)


def _stablehlo(program: Program, request: Request) -> tuple[bytes, list[str]]:
    sample = take_sample(program, request.radiographs)
    content = to_stablehlo(program)
    call = reader(content)

    def run(inputs: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
        found = call(*(inputs[name] for name in program.inputs))
        return [np.asarray(found[name]) for name in program.outputs]

    first = f"StableHLO for cpu, cuda and tpu; {_interface(program)}"
    return bytes(content), [first, *compare(program, run, sample), *_left_out(program)]


def _left_out(program: Program) -> list[str]:
    """Returns what a user must know that `predict` does and the file does not."""
    lines = []
    if program.puts_right:
        shapes = _STRETCHED if program.metadata["fit"] == "stretch" else ""
        lines.append(
            "turned, inverted, framed and small hands are put right inside, as squares: cut-outs "
            f"have the resolution of {program.image_size} pixels{shapes}"
        )
    elif (mode := program.network.info.background) and not program.hand_mask:
        lines.append(
            f"not in this file, other than in predict: the background is not removed ({mode}); "
            "give squares of boneage_jax.load_predictor(...).fit, which removes it"
        )
    elif program.hand_mask:
        lines.append(
            "the background is removed inside, by a U-Net, with masks of "
            f"{program.hand_mask.image_size} pixels; as in predict no radiograph is put right"
        )
    elif program.calibration is not None and program.calibration.view is not None:
        lines.append(
            "not in this file, other than in predict: turned, inverted and small hands are not put "
            "right"
        )
    return lines


def _interface(program: Program) -> str:
    return f"{program.metadata['inputs']} -> {', '.join(program.outputs)}"


def _halves(sample: Sample) -> tuple[Sample, Sample]:
    """Splits a sample into images to fit on and others to measure on.

    Raises:
      InputError: fewer than two images.
    """
    if len(sample.squares) < 2:
        raise InputError("--precision=int8 is fitted on radiographs; name two or more")

    def part(which: int) -> Sample:
        ages = None if sample.ages is None else sample.ages[which::2]
        squares, prepared = sample.squares[which::2], sample.prepared[which::2]
        name = f"half of {sample.name}; int8 was fitted on the other half"
        return Sample(name, squares, prepared, sample.male[which::2], ages, sample.real)

    return part(0), part(1)


FORMATS: dict[str, Callable[[Program, Request], tuple[bytes, list[str]]]] = {
    "onnx": _onnx,
    "stablehlo": _stablehlo,
    "web": _web,
}
_STRETCHED = ", and turns by odd multiples of 45 degrees are undone with stretched proportions"
_ONNX_JAX = re.compile(r"0\.10\.")  # versions of jax whose inside jax2onnx 0.13.0 knows
_ONNX = ("jax2onnx", "onnx", "onnxruntime")
_PACKAGES = {"onnx": _ONNX, "stablehlo": ("flatbuffers",), "web": _ONNX}

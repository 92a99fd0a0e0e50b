"""Builds one HTML page that reads bone ages in a browser, without a network connection."""

import base64
import gzip
import json
from importlib import resources
from typing import TYPE_CHECKING

import jinja2
import numpy as np
from markupsafe import Markup

from boneage_jax.errors import InputError
from boneage_jax.exporting.program import Program
from boneage_jax.inference.view import View
from boneage_jax.inference.view_network import SHAPES

if TYPE_CHECKING:
    import onnx

_SCRIPTS = ("fit.js", "grey.js", "picture.js", "dicom.js", "view.js", "model.js", "page.js")
_FITS = ("pad", "stretch")  # that fit.js knows
_LARGEST = 40e6  # bytes of a page, which is mailed and opened from disks


def check_page(program: Program) -> None:
    """Checks that the page can show a network.

    Raises:
      InputError: it is no network of bone ages, or reads radiographs in a way that the page does
        not know.
    """
    if program.outputs[0] != "bone_age_months":
        raise InputError("--format=web shows bone ages; use --format=onnx for other networks")
    if program.network.info.background:
        raise InputError(
            "--format=web: this network was trained on radiographs without background, which the "
            "page cannot remove; use --format=onnx"
        )
    if program.metadata["fit"] not in _FITS:
        raise InputError(f"--format=web knows no data.fit={program.metadata['fit']}")


def build_page(program: Program, model: "onnx.ModelProto") -> bytes:
    """Returns the page, UTF-8: runtime, network, scripts and licences in one file.

    Args:
      program: what `model` was made of; see `check_page`.
      model: any precision.

    Raises:
      InputError: the page would be larger than 40 MB.
    """
    facts = dict(program.metadata)
    view = program.calibration.view if program.calibration else None
    if view:
        facts["view_threshold"] = repr(view.threshold)
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, keep_trailing_newline=True)
    page = environment.from_string(_text("page.html")).render(
        style=Markup(_text("page.css")),
        facts=facts,
        # "<" as JSON writes it: no text can end the element.
        facts_json=Markup(json.dumps(facts).replace("<", "\\u003c")),
        takes_sex=program.takes_sex,
        licenses=_unpacked("vendor/LICENSES.txt.gz"),
        runtime=_base64(_bytes("vendor/ort.wasm.gz")),
        network=_base64(gzip.compress(model.SerializeToString(), mtime=0)),
        view=_base64(gzip.compress(_weights(view), mtime=0)) if view else "",
        libraries=Markup(_unpacked("vendor/libraries.js.gz")),
        scripts=[Markup(_text(name)) for name in _SCRIPTS],
    )
    content = page.encode()
    if len(content) > _LARGEST:
        raise InputError(
            f"--format=web: the page would have {len(content) / 1e6:.0f} MB, at most "
            f"{_LARGEST / 1e6:.0f} are written; export a smaller network or use --format=onnx"
        )
    return content


def _weights(view: View) -> bytes:
    """Returns the arrays of a view network one after the other, as view.js takes them."""
    return b"".join(np.asarray(view.weights[name], "<f4").tobytes() for name in SHAPES)


def _base64(content: bytes) -> Markup:
    return Markup(base64.b64encode(content).decode())


def _unpacked(name: str) -> str:
    return gzip.decompress(_bytes(name)).decode()


def _text(name: str) -> str:
    return _bytes(name).decode()


def _bytes(name: str) -> bytes:
    return (resources.files("boneage_jax.exporting") / "web" / name).read_bytes()

"""Converts a `Program` to an ONNX model and makes it small: float32, float16 or int8 weights."""

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.export
import jax.extend
import numpy as np

from boneage_jax.errors import InputError
from boneage_jax.exporting.program import Program
from boneage_jax.inference.saliency import CONTRIBUTIONS

if TYPE_CHECKING:
    import onnx

PRECISIONS = ("float32", "float16", "int8")
_OPSET = 21  # of ONNX 1.16, 2024: what onnxruntime from 1.18 on reads
_IR_VERSION = 10  # the same
# Weights of fewer values stay float32 in float16 files: those of the first convolutions and of the
# depthwise ones. For a Lite0 (128 px, 7.3 instead of 7.1 MB) the largest change of an age on 100
# radiographs was 0.02 months, and 0.33 without that.
_SMALL = 10_000
# Convolutions from the image on that stay float32 in int8 files. With all of them quantised the
# ages of a Lite0 (128 px) moved by 16.2 months on average, without the first six by 1.4, the first
# nine 1.9; the time is the same.
_FLOAT_CONVOLUTIONS = 6


def to_onnx(program: Program, explained: bool = False) -> "onnx.ModelProto":
    """Converts a network with all that surrounds it; the number of images is free.

    bfloat16 networks compute in float32: few runtimes have the former.

    Args:
      program: the network.
      explained: add the output `contributions`, see `Program.function`.

    Raises:
      InputError: the network has an operation that the converter does not know.
    """
    if program.network.config.test_views:
        raise InputError(
            "config.test_views: augmented views are drawn at random, which ONNX does not have; "
            "use --format=stablehlo"
        )
    # Convolutions, where JAX's CPU backend gets other operations for speed.
    function = program.function(explained, depthwise="fused", portable=True, dtype="float32")
    outputs = (*program.outputs, *((CONTRIBUTIONS,) if explained else ()))

    def call(*inputs: jax.Array) -> tuple[jax.Array, ...]:
        found = function(program.members, *inputs)
        return tuple(found[name] for name in outputs)

    (batch,) = jax.export.symbolic_shape("batch")
    shapes = program.shapes(batch)
    if explained:  # the converter's stand-ins for layers of Flax have no gradients
        call = jax.extend.core.jaxpr_as_fun(jax.make_jaxpr(call)(*shapes))
    with _quiet():
        import jax2onnx

        try:
            model = jax2onnx.to_onnx(
                call,
                shapes,
                model_name="boneage_jax",
                opset=_OPSET,
                input_names=program.inputs,
                output_names=outputs,
            )
        except InputError:
            raise
        except Exception as error:  # of many types, for operations that it does not know
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"model {program.network.config.model.name!r} cannot be converted to ONNX "
                f"({reason}); use --format=stablehlo"
            ) from error
    return _finished(_shared(_summed(_clipped(_folded(model)))), program.metadata)


def with_float16_weights(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """Stores the weights as float16: half the size. The arithmetic stays float32.

    A runtime converts them once, when it loads the file.
    """
    import onnx
    from onnx import numpy_helper

    model = _copy(model)
    casts = []
    for weights in model.graph.initializer:
        large = weights.data_type == onnx.TensorProto.FLOAT and np.prod(weights.dims) >= _SMALL
        if not large:
            continue
        name = weights.name
        half = numpy_helper.to_array(weights).astype(np.float16)
        if not np.isfinite(half).all():
            continue
        weights.CopyFrom(numpy_helper.from_array(half, f"{name}_float16"))
        cast = onnx.helper.make_node(
            "Cast", [weights.name], [name], name=f"{name}_cast", to=onnx.TensorProto.FLOAT
        )
        casts.append(cast)
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return _marked(model, "float16 weights, float32 arithmetic")


def with_int8_convolutions(
    model: "onnx.ModelProto", images: Sequence[Mapping[str, np.ndarray]]
) -> "onnx.ModelProto":
    """Quantises convolutions to 8 bits with onnxruntime's static quantiser.

    Weights per channel; activations by the ranges that they have on `images`. The first
    convolutions, the heads and the judgement of the image stay float32: they need precision.

    Args:
      model: float32 model.
      images: batches of inputs by name, radiographs as they will come.
    """
    from onnxruntime import quantization

    class Batches(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.remaining = iter(images)

        def get_next(self) -> Any:
            return next(self.remaining, None)

    with _quiet(), tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "int8.onnx")
        quantization.quantize_static(
            _copy(model),
            output,
            Batches(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            nodes_to_exclude=_first_convolutions(model, _FLOAT_CONVOLUTIONS),
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        return _marked(_load(output), "int8 convolutions")


def _folded(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """Computes what does not depend on the inputs and merges operations, by onnxruntime.

    Its basic level writes standard operations alone: BatchNorm ends inside convolutions.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3  # errors
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "folded.onnx")
        options.optimized_model_filepath = str(path)
        try:
            onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # of onnxruntime, which has no type for a full disk
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"onnxruntime failed in {folder} ({reason}); if there is no room, name a folder "
                "that has some by TMPDIR"
            ) from error
        return _load(path)


def _clipped(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """Writes min(max(x, low), high) as one Clip, which runtimes merge with a convolution."""
    import onnx
    from onnx import numpy_helper

    constants = {
        tensor.name: tensor
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and np.prod(tensor.dims) == 1
    }
    readers: dict[str, int] = {}
    for node in model.graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    makers = {node.output[0]: node for node in model.graph.node}
    dropped = set()
    for node in model.graph.node:
        inner = [makers[name] for name in node.input if name in makers]
        if node.op_type != "Min" or len(inner) != 1 or inner[0].op_type != "Max":
            continue
        (below,) = inner
        bounds = [[n for n in each.input if n in constants] for each in (below, node)]
        values = [n for n in below.input if n not in constants]
        single = readers[below.output[0]] == 1 and [len(b) for b in bounds] == [1, 1]
        if not single or len(values) != 1:
            continue
        ends = []
        for (name,) in bounds:
            scalar = numpy_helper.to_array(constants[name]).reshape(())
            ends.append(f"{name}_scalar")
            if not any(tensor.name == ends[-1] for tensor in model.graph.initializer):
                model.graph.initializer.append(numpy_helper.from_array(scalar, ends[-1]))
        clip = onnx.helper.make_node(
            "Clip", [values[0], *ends], list(node.output), name=f"{node.name}_clip"
        )
        node.CopyFrom(clip)
        dropped.add(below.output[0])
    kept = [node for node in model.graph.node if node.output[0] not in dropped]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    used = {name for node in kept for name in node.input}
    tensors = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(tensors)
    return model


def _summed(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """Writes sums of squares as a product and a sum.

    onnxruntime adds the squares one after the other in float32: the standard deviation of 128 x 128
    pixels was off by 2e-5, and the age by up to 5e-3 months. Its plain sum is exact to 1e-7.
    """
    import onnx

    nodes = []
    for node in model.graph.node:
        if node.op_type == "ReduceSumSquare":
            squares = f"{node.output[0]}_squares"
            name = f"{node.name}_squares"
            nodes.append(onnx.helper.make_node("Mul", [node.input[0]] * 2, [squares], name=name))
            node.input[0] = squares
            node.op_type = "ReduceSum"
        nodes.append(node)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return model


def _shared(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """Stores equal constants once: image and mirror image go through the same weights."""
    first: dict[tuple[Any, ...], str] = {}
    names: dict[str, str] = {}
    kept = []
    for tensor in model.graph.initializer:
        key = (tensor.data_type, tuple(tensor.dims), _bytes(tensor))
        names[tensor.name] = first.setdefault(key, tensor.name)
        kept += [tensor] if names[tensor.name] == tensor.name else []
    for node in model.graph.node:
        for at, name in enumerate(node.input):
            node.input[at] = names.get(name, name)
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model


def _bytes(tensor: "onnx.TensorProto") -> bytes:
    from onnx import numpy_helper

    return numpy_helper.to_array(tensor).tobytes()


def _first_convolutions(model: "onnx.ModelProto", count: int) -> list[str]:
    """Returns the names of convolutions with fewer than `count` others between image and them."""
    depth: dict[str, int] = {}
    found = []
    for node in model.graph.node:  # in the order of computation
        before = max((depth.get(name, 0) for name in node.input), default=0)
        is_conv = node.op_type == "Conv"
        found += [node.name] if is_conv and before < count else []
        for name in node.output:
            depth[name] = before + is_conv
    return found


def _finished(model: "onnx.ModelProto", metadata: Mapping[str, str]) -> "onnx.ModelProto":
    """Adds the metadata and checks the model."""
    import onnx

    used = {node.domain for node in model.graph.node}
    opsets = [opset for opset in model.opset_import if opset.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(opsets)
    model.ir_version = min(model.ir_version, _IR_VERSION)
    model.producer_name, model.producer_version = metadata["version"].split()
    model.doc_string = metadata["terms"]
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {**metadata, "precision": "float32"})
    onnx.checker.check_model(model)
    return model


def _marked(model: "onnx.ModelProto", precision: str) -> "onnx.ModelProto":
    import onnx

    for entry in model.metadata_props:
        if entry.key == "precision":
            entry.value = precision
    onnx.checker.check_model(model)
    return model


def _copy(model: "onnx.ModelProto") -> "onnx.ModelProto":
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _load(path: Path) -> "onnx.ModelProto":
    import onnx

    return onnx.load(str(path))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what the converter and the quantiser say, none of it a user's concern, off the screen.

    The converter prints what it meets and warns of plugins for other libraries.
    """
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)

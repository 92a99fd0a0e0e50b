"""Counts the FLOPs of a function from its jaxpr.

FLOPs are 2 x the multiply-adds of convolutions and matrix products, padded taps included, of the
function that is actually executed, forward and backward; of complex numbers, 4 times as many.
Elementwise work and sums count nothing, nor does the product of two vectors, which is no more.
Fourier transforms and factorisations count by their usual formulas. XLA's own cost analysis is not
used: it is off by more than 10x for the gradient of a depthwise convolution on CPU.
"""

import math
import os
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from boneage_jax.errors import InputError

# A contract with boneage_jax/models, checked by tests/test_flops.py: jitted functions of these
# names are convolutions, although their jaxprs hold shifted products (depthwise.py), foreign code
# (*_native.py) or products with zeros and borders that must not count (convolution.py).
MARKED_DEPTHWISE = (
    "depthwise_shift_forward",
    "depthwise_shift_input_grad",
    "depthwise_shift_kernel_grad",
    "depthwise_native_forward",
    "depthwise_native_input_grad",
    "depthwise_native_kernel_grad",
)
_FORWARD = ("packed_conv", "native_convolution")
MARKED_CONVOLUTIONS = (*_FORWARD, "swapped_weight_gradient", "native_weight_gradient")
_HOME = f"{os.sep}boneage_jax{os.sep}models{os.sep}"  # of the marked functions
# Foreign code of boneage_jax/models: elementwise work, sums and copies, which count nothing.
_ELEMENTWISE = (
    "boneage_jax_batch_norm_moments",
    "boneage_jax_batch_norm_gradient",
    "boneage_jax_after",
)
_SUMS = "pixel_sums"  # a marked function of sums alone
# Run on the host, or as code whose work the jaxpr does not show.
_OPAQUE = ("pure_callback", "io_callback", "ffi_call", "pallas_call", "tpu_custom_call")
_ITERATIVE = ("svd", "eig", "eigh", "schur", "hessenberg", "tridiagonal", "geqrf", "geqp3")
# Names of primitives with products that are not counted: sparse and scaled ones, further
# factorisations. None is counted as 0.
_PRODUCT = re.compile(r"dot|matmul|matmat|matvec|product|solve|attention|qr$|cholesky_update")


def count_flops(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> int:
    """Counts the FLOPs of `fn(*args, **kwargs)` without computing anything.

    Args:
      fn: any JAX function, jitted or not.
      *args: arrays or `jax.ShapeDtypeStruct`s, or trees of them; other values are static.
      **kwargs: likewise, e.g. `train=False`.

    Returns:
      2 x multiply-adds. The body of a scan counts once per iteration; the most expensive branch of
      a conditional counts; under shard_map and pmap all devices count.

    Raises:
      InputError: work that the jaxpr does not show: matrix products in a while loop of unknown
        length, host callbacks, foreign kernels, sparse products, iterative factorisations.
    """
    if not callable(fn):
        raise InputError(f"count_flops: {fn!r} must be a function")
    leaves, tree = jax.tree.flatten((args, kwargs))
    is_array = [hasattr(leaf, "shape") and hasattr(leaf, "dtype") for leaf in leaves]
    places = [place for place, array in enumerate(is_array) if array]

    def run(arrays: list[Any]) -> Any:
        known = list(leaves)
        for place, array in zip(places, arrays, strict=True):
            known[place] = array
        positional, named = jax.tree.unflatten(tree, known)
        outputs = jax.tree.leaves(fn(*positional, **named))
        return [leaf for leaf in outputs if hasattr(leaf, "dtype")]

    return _count(jax.make_jaxpr(run)([leaves[place] for place in places]).jaxpr)


def _count(jaxpr: Any) -> int:
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(eqn: Any) -> int:
    name = eqn.primitive.name
    if name == "ffi_call" and eqn.params["target_name"] in _ELEMENTWISE:
        return 0
    if name in _OPAQUE or name in _ITERATIVE:
        raise _uncountable(name)
    if name in _COUNTED:
        complex_numbers = jax.numpy.issubdtype(eqn.invars[0].aval.dtype, np.complexfloating)
        return _COUNTED[name](eqn) * (4 if complex_numbers and name != "fft" else 1)
    if name in ("jit", "pjit"):
        if eqn.params.get("name") == _SUMS and _is_ours(eqn):
            return 0
        known = _count_marked(eqn)
        if known:
            return known
    if name == "scan":
        return eqn.params["length"] * _count(eqn.params["jaxpr"].jaxpr)
    if name == "cond":
        return max(_count(branch.jaxpr) for branch in eqn.params["branches"])
    if name == "while":
        body = _count(eqn.params["body_jaxpr"].jaxpr) + _count(eqn.params["cond_jaxpr"].jaxpr)
        if body:
            raise InputError("count_flops: a while loop of unknown length holds matrix products")
        return 0
    if name == "custom_linear_solve":  # the others serve derivatives
        return _count(eqn.params["jaxprs"].solve.jaxpr)
    times = 1
    if name == "shard_map":
        times = math.prod(eqn.params["mesh"].shape.values())
    elif name == "xla_pmap":
        times = eqn.params["global_axis_size"]
    inside = _inner(eqn.params)
    if not inside and _PRODUCT.search(name):
        raise _uncountable(name)
    return times * sum(_count(inner) for inner in inside)


def _uncountable(name: str) -> InputError:
    return InputError(
        f"count_flops: the work of {name} cannot be counted; leave it out of the function"
    )


def _count_dot(eqn: Any) -> int:
    (contract, _), _ = eqn.params["dimension_numbers"]
    if all(len(v.aval.shape) == 1 for v in eqn.invars):
        return 0  # an elementwise product and its sum, which count nothing in any other form
    inner = math.prod(eqn.invars[0].aval.shape[axis] for axis in contract)
    return 2 * inner * math.prod(eqn.outvars[0].aval.shape)


def _count_ragged_dot(eqn: Any) -> int:
    """Counts each element of the left side once for each free column of the right side.

    Every row meets the matrix of its own group alone, so groups do not multiply.
    """
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    (_, contract), (_, batch) = numbers.dot_dimension_numbers
    bound = {*contract, *batch, *numbers.rhs_group_dimensions}
    left, right = (v.aval.shape for v in eqn.invars[:2])
    free = math.prod(side for axis, side in enumerate(right) if axis not in bound)
    return 2 * math.prod(left) * free


def _count_fft(eqn: Any) -> int:
    """Counts 5 n log2(n) for n points, half of it for real ones (as FFTW's benchmarks do)."""
    lengths = eqn.params["fft_lengths"]
    points = math.prod(lengths)
    sizes = [math.prod(v.aval.shape[: -len(lengths)]) for v in eqn.invars]
    real = any(v.aval.dtype.kind == "f" for v in (*eqn.invars, *eqn.outvars))
    return round(sizes[0] * (2.5 if real else 5.0) * points * math.log2(max(points, 2)))


def _count_factorisation(eqn: Any) -> int:
    """Counts by the leading terms of LAPACK working note 41."""
    *batch, rows, columns = eqn.invars[0].aval.shape
    each: float
    match eqn.primitive.name:
        case "cholesky":
            each = rows**3 / 3
        case "lu":
            long, short = max(rows, columns), min(rows, columns)
            each = short**2 * (long - short / 3)
        case _:  # triangular_solve: a triangle for every right-hand side
            each = rows * math.prod(eqn.invars[1].aval.shape[len(batch) :])
    return round(math.prod(batch) * each)


def _inner(params: dict[str, Any]) -> list[Any]:
    """Returns the jaxprs among the parameters of an equation, except derivative rules."""
    found = []
    for key, value in params.items():
        if "jvp" in key or "fwd" in key or "bwd" in key:
            continue
        for item in value if isinstance(value, tuple | list) else (value,):
            if hasattr(item, "jaxpr"):
                item = item.jaxpr
            if hasattr(item, "eqns"):
                found.append(item)
    return found


def _count_conv(eqn: Any) -> int:
    """Counts taps x input channels of the group for every output element.

    Zeros that a dilation inserts between the inputs (the gradient of a strided convolution, a
    transposed convolution) are not counted: each input meets each kernel position once, so the
    gradient costs as much as the forward pass, as in torch's FlopCounterMode.
    """
    numbers = eqn.params["dimension_numbers"]
    image, kernel = (v.aval.shape for v in eqn.invars)
    taps = math.prod(kernel[axis] for axis in numbers.rhs_spec[2:])
    # With batch groups (the kernel gradient of a grouped convolution) each group of the batch
    # has its own output channels: the kernel's input channels are already those of one group.
    by_output = 2 * taps * kernel[numbers.rhs_spec[1]] * math.prod(eqn.outvars[0].aval.shape)
    dilation = math.prod(eqn.params["lhs_dilation"])
    if dilation == 1:
        return by_output
    groups = eqn.params["feature_group_count"] * eqn.params["batch_group_count"]
    by_input = 2 * taps * kernel[numbers.rhs_spec[0]] // groups * math.prod(image)
    return by_input if by_input <= by_output else by_output // dilation


_COUNTED: dict[str, Callable[[Any], int]] = {
    "dot_general": _count_dot,
    "ragged_dot_general": _count_ragged_dot,
    "conv_general_dilated": _count_conv,
    "fft": _count_fft,
    "cholesky": _count_factorisation,
    "lu": _count_factorisation,
    "triangular_solve": _count_factorisation,
}


def _count_marked(eqn: Any) -> int:
    """Returns the FLOPs of a marked function of boneage_jax/models; 0 for any other."""
    name = eqn.params.get("name")
    if name not in (*MARKED_DEPTHWISE, *MARKED_CONVOLUTIONS):
        return 0
    if not _is_ours(eqn):
        return 0
    return _count_depthwise(eqn) if name in MARKED_DEPTHWISE else _count_convolution(eqn)


def _is_ours(eqn: Any) -> bool:
    source = eqn.params["jaxpr"].jaxpr.debug_info.func_src_info or ""  # NAME at FILE:LINE
    return _HOME in source


def _count_convolution(eqn: Any) -> int:
    """Returns the FLOPs of a convolution or its weight gradient; 0 if it was batched or derived."""
    shapes = [v.aval.shape for v in (*eqn.invars, *eqn.outvars)]
    if [len(shape) for shape in shapes] != [4, 4, 4]:
        return 0
    first, second, result = shapes
    if eqn.params["name"] in _FORWARD:  # inputs, kernel, result
        kernel, pixels = second, result
        known = (first[3], result[3]) == kernel[2:]
    else:  # inputs, gradient, kernel
        kernel, pixels = result, second
        known = (first[3], second[3]) == kernel[2:]
    return 2 * math.prod(kernel) * math.prod(pixels[:3]) if known else 0


def _count_depthwise(eqn: Any) -> int:
    """Returns 2 x k x k x output elements, also for the input and the kernel gradient.

    Under vmap a batch axis leads.
    """
    shapes = [v.aval.shape for v in (*eqn.invars, *eqn.outvars) if len(v.aval.shape) >= 4]
    for kernel in (shapes[1], shapes[-1]):
        rows, columns, inputs, _ = kernel[-4:]
        if inputs == 1 and rows == columns <= 11:
            small = min(math.prod(s) for s in shapes if s is not kernel)
            return 2 * rows * columns * small
    raise InputError(f"count_flops: {eqn.params['name']} of {shapes} cannot be counted")

"""Counts the FLOPs of a function from its jaxpr.

FLOPs are 2 x the multiply-adds of convolutions and matrix products, padded taps included, of the
function that is actually executed, forward and backward. XLA's own cost analysis is not used: it is
off by more than 10x for the gradient of a depthwise convolution on CPU.
"""

import math
from collections.abc import Callable
from typing import Any

import jax

# A contract with boneage_jax/models, checked by tests/test_flops.py: jitted functions of these
# names are convolutions, although their jaxprs hold shifted products (depthwise.py) or products
# with zeros and borders that must not count (convolution.py).
MARKED_DEPTHWISE = (
    "depthwise_shift_forward",
    "depthwise_shift_input_grad",
    "depthwise_shift_kernel_grad",
)
MARKED_CONVOLUTIONS = _PACKED, _SWAPPED = "packed_conv", "swapped_weight_gradient"


def count_flops(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> int:
    """Counts the FLOPs of `fn(*args, **kwargs)` without computing anything.

    Args:
      fn: any JAX function, jitted or not.
      *args: arrays or `jax.ShapeDtypeStruct`s, or trees of them.
      **kwargs: likewise.

    Returns:
      2 x multiply-adds. The body of a scan counts once per iteration; the most expensive branch of
      a conditional counts; under shard_map and pmap all devices count.

    Raises:
      ValueError: a while loop contains matrix products, since its length is unknown.
    """
    return _count(jax.make_jaxpr(lambda a, k: fn(*a, **k))(args, kwargs).jaxpr)


def _count(jaxpr: Any) -> int:
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(eqn: Any) -> int:
    name = eqn.primitive.name
    if name == "dot_general":
        (contract, _), _ = eqn.params["dimension_numbers"]
        inner = math.prod(eqn.invars[0].aval.shape[axis] for axis in contract)
        return 2 * inner * math.prod(eqn.outvars[0].aval.shape)
    if name == "conv_general_dilated":
        return _count_conv(eqn)
    if name in ("jit", "pjit") and eqn.params.get("name") in MARKED_DEPTHWISE:
        return _count_depthwise(eqn)
    if name in ("jit", "pjit") and eqn.params.get("name") in MARKED_CONVOLUTIONS:
        known = _count_convolution(eqn)
        if known:
            return known
    if name == "scan":
        return eqn.params["length"] * _count(eqn.params["jaxpr"].jaxpr)
    if name == "cond":
        return max(_count(branch.jaxpr) for branch in eqn.params["branches"])
    if name == "while":
        body = _count(eqn.params["body_jaxpr"].jaxpr) + _count(eqn.params["cond_jaxpr"].jaxpr)
        if body:
            raise ValueError("count_flops: a while loop of unknown length holds matrix products")
        return 0
    times = 1
    if name == "shard_map":
        times = math.prod(eqn.params["mesh"].shape.values())
    elif name == "xla_pmap":
        times = eqn.params["global_axis_size"]
    return times * sum(_count(inner) for inner in _inner(eqn.params))


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


def _count_convolution(eqn: Any) -> int:
    """Returns the FLOPs of a convolution or its weight gradient; 0 if it was batched or derived."""
    shapes = [v.aval.shape for v in (*eqn.invars, *eqn.outvars)]
    if [len(shape) for shape in shapes] != [4, 4, 4]:
        return 0
    first, second, result = shapes
    if eqn.params["name"] == _PACKED:  # inputs, kernel, result
        kernel, pixels = second, result
        known = (first[3], result[3]) == kernel[2:]
    else:  # inputs, gradient, kernel
        kernel, pixels = result, second
        known = (first[3], second[3]) == kernel[2:]
    return 2 * math.prod(kernel) * math.prod(pixels[:3]) if known else 0


def _count_depthwise(eqn: Any) -> int:
    """Returns 2 x k x k x output elements, also for the input and the kernel gradient."""
    shapes = [v.aval.shape for v in (*eqn.invars, *eqn.outvars) if len(v.aval.shape) == 4]
    kernel = next(s for s in (shapes[1], shapes[-1]) if s[2] == 1 and s[0] == s[1] <= 11)
    small = min(math.prod(s) for s in shapes if s is not kernel)
    return 2 * kernel[0] * kernel[1] * small

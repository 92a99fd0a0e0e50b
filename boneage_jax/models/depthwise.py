"""Depthwise convolution, with the implementation that is fastest on each backend.

XLA's CPU backend runs a depthwise `conv_general_dilated` 30-40 times slower than the same sum of
shifted products, and its gradients are worse. On a GPU cuDNN's convolution wins, since shifted
products read the input k*k times from memory; so it does over one written in Triton, 12 against 20
ms of a train step of EfficientNet-B4 (64 images of 380 px, bfloat16, H200). XLA's TPU compiler
computes the operations before a convolution while reading its input, if nothing else needs their
result: `fused_depthwise` ensures that.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax

from boneage_jax.errors import InputError
from boneage_jax.models.depthwise_native import KERNELS, Padding, native_conv, native_fused
from boneage_jax.models.depthwise_shift import shift_conv
from boneage_jax.models.fused_block import pointwise
from boneage_jax.models.gpu_block import scale_and_act
from boneage_jax.models.native import is_enabled
from boneage_jax.models.strips import borders, conv_strips

IMPLEMENTATIONS = ("auto", "lax", "shift", "fused", "cudnn")


def depthwise_conv(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: int = 1,
    padding: str | Sequence[tuple[int, int]] = "SAME",
    implementation: str = "auto",
    train: bool = False,
    strips: int = 1,
) -> jax.Array:
    """Convolves each channel with its own kernel.

    Args:
      x: [B, H, W, C].
      kernel: [k, k, 1, C], of the dtype of `x`.
      stride: stride of both axes.
      padding: 'SAME' (TensorFlow's rule), 'VALID', or ((top, bottom), (left, right)) in pixels.
      implementation: 'lax', 'shift', 'fused' or 'cudnn' (lax here, see `fused_depthwise`), or
        'auto', by `chosen`. The choice is made while tracing: name one when compiling for another
        machine.
      train: with 'auto', use compiled code where that is enabled; see
        `boneage_jax.models.native`. Reading is left to XLA, so that a trained network
        gives the same numbers everywhere.
      strips: number of strips that each image is cut into, see `boneage_jax.models.strips`; more
        than one are convolved by lax.

    Returns:
      [B, H', W', C] of the dtype of `x`.

    Raises:
      InputError: an unknown implementation.
    """
    shape = (x.shape[1] * strips, x.shape[2])
    exact = exact_pads(shape, kernel.shape[0], stride, padding)
    kind = chosen(implementation, train)
    if strips > 1:
        edges = borders(x, kernel.shape[0], stride, exact[0])
        return _conv_made(lambda x: x, x, edges, kernel, stride, exact, strips)
    if train and runs_natively(implementation, x.dtype) and kernel.shape[0] in KERNELS:
        return native_conv(x, kernel, stride, exact)
    if kind == "shift":
        return shift_conv(x, kernel, stride, exact)
    return _lax_conv(x, kernel, stride, exact)


def chosen(implementation: str, train: bool = False) -> str:
    """Returns the implementation that a name stands for; 'auto' depends on the default backend.

    On a single NVIDIA GPU 'auto' is 'cudnn' in train steps, with the sums of
    `boneage_jax.models.gpu_block`; XLA cannot share out kernels of Triton among several.

    Raises:
      InputError: an unknown implementation.
    """
    if implementation not in IMPLEMENTATIONS:
        raise InputError(
            f"depthwise implementation {implementation!r} is unknown; choose one of "
            f"{', '.join(IMPLEMENTATIONS)}"
        )
    if implementation != "auto":
        return implementation
    if train and jax.device_count() == 1 and _is_nvidia(jax.devices()[0]):
        return "cudnn"
    return implementation_for(jax.default_backend())


def _is_nvidia(device: jax.Device) -> bool:
    return device.platform == "gpu" and "rocm" not in device.client.platform_version


def runs_natively(implementation: str, dtype: Any) -> bool:
    """Returns whether train steps use compiled code for this implementation and dtype."""
    return implementation == "auto" and is_enabled(dtype)


def implementation_for(backend: str) -> str:
    """Returns what 'auto' means on a backend (cpu, gpu, tpu): shift | lax | fused."""
    return {"cpu": "shift", "tpu": "fused"}.get(backend, "lax")


def fused_depthwise(
    x: jax.Array,
    a: jax.Array,
    b: jax.Array,
    kernel: jax.Array,
    *,
    act: Callable[[jax.Array], jax.Array],
    stride: int = 1,
    padding: str | Sequence[tuple[int, int]] = "SAME",
    native: bool = False,
    keep: bool = False,
    strips: int = 1,
    edges: tuple[jax.Array, jax.Array] | None = None,
    source: tuple[jax.Array, jax.Array] | None = None,
) -> jax.Array:
    """Computes `depthwise_conv(act(x * a + b), kernel)` without keeping what is convolved.

    Arranged for XLA's TPU compiler, or, with `native`, for compiled code on a CPU. With `keep`,
    for a GPU, where cuDNN convolves and what is convolved is kept.

    XLA's TPU compiler computes normalisation and activation inside the convolution, forward and in
    the gradients of input and kernel, so that act(x * a + b) is never written to memory. It does so
    only if the convolution is the sole reader, so the derivative rule recomputes that value from
    `x` instead of storing it.

    Args:
      x: [B, H, W, C].
      a, b: float32 [C].
      kernel: [k, k, 1, C], of the dtype of `x`.
      act: activation, applied to float32 values.
      stride, padding: as in `depthwise_conv`.
      native: use `boneage_jax.models.depthwise_native.native_fused`; `x` is float32, the kernel 1,
        3, 5 or 7 wide, and `act` one of ReLU, ReLU6 and swish.
      keep: keep what is convolved.
      strips: number of strips that each image is cut into, see `boneage_jax.models.strips`.
      edges: the `borders` of `x`, taken from it if None.
      source: two arrays whose `boneage_jax.models.fused_block.pointwise` is `x`. It is computed
        again for the gradients instead of kept for them; for TPUs only.

    Returns:
      [B, H', W', C] of the dtype of `x`.

    Raises:
      ValueError: strips together with `native` or `keep`.
    """
    shape = (x.shape[1] * strips, x.shape[2])
    exact = exact_pads(shape, kernel.shape[0], stride, padding)
    if strips == 1:
        edges = None
    elif keep or native:
        raise ValueError(f"strips={strips}: native and keep convolve whole images")
    elif edges is None:
        edges = borders(x, kernel.shape[0], stride, exact[0])
    if keep:
        return _lax_conv(scale_and_act(x, a, b, act), kernel, stride, exact)
    if native:
        return native_fused(x, a, b, kernel, act, stride, exact)
    return _fused_conv(x, a, b, kernel, edges, source, act, stride, exact, strips)


def exact_pads(
    shape: Sequence[int], kernel: int, stride: int, padding: str | Sequence[tuple[int, int]]
) -> Padding:
    """Returns the padding of both axes in pixels: ((top, bottom), (left, right)).

    Args:
      shape: height and width of what is convolved.
      kernel: width of the kernel.
      stride, padding: as in `depthwise_conv`.
    """
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(shape, (kernel, kernel), (stride, stride), padding)
    return tuple((int(low), int(high)) for low, high in padding)  # type: ignore[return-value]


def _lax_conv(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7, 8, 9))
def _fused_conv(
    x: jax.Array,
    a: jax.Array,
    b: jax.Array,
    kernel: jax.Array,
    edges: tuple[jax.Array, jax.Array] | None,
    source: tuple[jax.Array, jax.Array] | None,
    act: Callable[[jax.Array], jax.Array],
    stride: int,
    padding: Padding,
    strips: int,
) -> jax.Array:
    def make(x: jax.Array) -> jax.Array:
        return act(x * a + b).astype(x.dtype)

    return _conv_made(make, x, edges, kernel, stride, padding, strips)


def _fused_fwd(
    x: jax.Array,
    a: jax.Array,
    b: jax.Array,
    kernel: jax.Array,
    edges: tuple[jax.Array, jax.Array] | None,
    source: tuple[jax.Array, jax.Array] | None,
    act: Callable[[jax.Array], jax.Array],
    stride: int,
    padding: Padding,
    strips: int,
) -> tuple[jax.Array, tuple[Any, ...]]:
    out = _fused_conv(x, a, b, kernel, edges, source, act, stride, padding, strips)
    return out, (x if source is None else None, source, a, b, kernel, edges)


def _fused_bwd(
    act: Callable[[jax.Array], jax.Array],
    stride: int,
    padding: Padding,
    strips: int,
    saved: tuple[Any, ...],
    grad: jax.Array,
) -> tuple[Any, ...]:
    # Without the barrier the compiler would reuse, and so store, the forward pass's result, and
    # would compute the gradient again in both convolutions from more than one array.
    (x, source, a, b, kernel, edges), grad = lax.optimization_barrier((saved, grad))
    if source is not None:
        x = pointwise(*source)

    def make(x: jax.Array) -> jax.Array:
        return act(x * a + b).astype(x.dtype)

    def by_kernel(kernel: jax.Array) -> jax.Array:
        return _conv_made(make, x, edges, kernel, stride, padding, strips)

    def by_made(y: jax.Array, edges: Any) -> jax.Array:
        return _conv_made(lambda y: y, y, edges, kernel, stride, padding, strips)

    def by_input(x: jax.Array, y_grad: jax.Array) -> tuple[jax.Array, ...]:
        z = x * a + b
        _, act_vjp = jax.vjp(lambda z: act(z).astype(x.dtype), z)
        (z_grad,) = act_vjp(y_grad)
        # Rounded like every gradient between layers: in float32 it would be the largest array of
        # the step.
        z_grad = z_grad.astype(x.dtype).astype(z.dtype)
        return (z_grad * a).astype(x.dtype), (z_grad * x).sum((0, 1, 2)), z_grad.sum((0, 1, 2))

    (kernel_grad,) = jax.linear_transpose(by_kernel, kernel)(grad)
    y_grad, edge_grads = jax.linear_transpose(by_made, x, edges)(grad)
    x_grad, *sums = by_input(x, y_grad)
    if edges is not None:
        pairs = [by_input(*pair) for pair in zip(edges, edge_grads, strict=True)]
        edge_grads = tuple(pair[0] for pair in pairs)
        sums = [sum(parts) for parts in zip(sums, *(pair[1:] for pair in pairs), strict=True)]
    return x_grad, *sums, kernel_grad, edge_grads, None


_fused_conv.defvjp(_fused_fwd, _fused_bwd)


def _conv_made(
    make: Callable[[jax.Array], jax.Array],
    x: jax.Array,
    edges: tuple[jax.Array, jax.Array] | None,
    kernel: jax.Array,
    stride: int,
    padding: Padding,
    strips: int,
) -> jax.Array:
    """Convolves make(x), an elementwise function, which may be cut into strips."""
    if edges is None:
        return _lax_conv(make(x), kernel, stride, padding)
    return conv_strips(
        lambda y, pads: _lax_conv(y, kernel, stride, pads),
        make,
        x,
        edges,
        kernel=kernel.shape[0],
        stride=stride,
        padding=padding,
        strips=strips,
    )

"""Affine resampling of image batches: by gathering pixels, or by matrix products."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

STEEPEST = 60.0  # degrees of rotation + shear up to which two-pass resampling is available


@dataclasses.dataclass(frozen=True)
class Reach:
    """Bounds on the geometric draws, known beforehand: they set the sizes of padded arrays.

    Attributes:
      rotate: degrees.
      shear: degrees.
      zoom: the magnification is in 1 ± zoom.
      translate: fraction of width and height.
    """

    rotate: float
    shear: float
    zoom: float
    translate: float

    @property
    def separable(self) -> bool:
        """Whether rows and columns stay rows and columns."""
        return not (self.rotate or self.shear)

    @property
    def gentle(self) -> bool:
        """Whether two passes suffice."""
        return self.rotate + self.shear <= STEEPEST


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Affine maps from output to input, in output pixels about the centre, x right and y down.

    (u, v) = matrix (x - translate_x, y - translate_y) with matrix [B, 2, 2] and the translation
    [B] as fractions of width and height. An input of another size is resized to the output's first,
    so a rotation turns what the network sees, not what is stored.
    """

    matrix: jax.Array
    translate_x: jax.Array
    translate_y: jax.Array


def resample(
    layers: jax.Array,
    geometry: Geometry,
    reach: Reach,
    method: str = "auto",
    shape: tuple[int, int] | None = None,
) -> jax.Array:
    """Transforms images [B, H, W, C] by one map each; zero outside.

    A smaller output is read straight from the input: each pixel is the mean of a grid of points,
    one per input pixel that it covers along each axis (rounded), so nothing is blurred twice.

    Milliseconds per 32 images, whole `augment` compiled, 2 cores of AMD Zen 5, best of 16:

                                    128 px           256 px
                                matmul  gather   matmul  gather
      flip, zoom, translate        4.3     2.0     30.7     9.3
      and rotate, shear            7.4     1.8     69.2    11.8

    so a CPU gathers (a step of EfficientNet-B4 on 32 images takes seconds there). The choice for
    accelerators is not measured: matrix products if no shears are needed, and always on a TPU,
    which has no fast gather of single pixels.

    Args:
      layers: float32 [B, H, W, C].
      geometry: one map per image.
      reach: bounds on the maps.
      method: matmul | gather | auto.
      shape: height and width of the output; that of the input if None.

    Returns:
      float32 [B, height, width, C].
    """
    if method == "auto":
        method = method_for(jax.default_backend(), reach)
    shape = shape or (layers.shape[1], layers.shape[2])
    if method == "matmul":
        return _two_pass(layers, geometry, reach, shape)
    return _gather(layers, geometry, shape)


def method_for(backend: str, reach: Reach) -> str:
    """Returns the method that 'auto' selects on a backend (cpu, gpu or tpu): matmul | gather."""
    matmul_on = ("tpu", "gpu") if reach.separable else ("tpu",)
    return "matmul" if reach.gentle and backend in matmul_on else "gather"


def resize(layers: jax.Array, shape: tuple[int, int], zoom: float = 1.0) -> jax.Array:
    """Resizes images [B, H, W, C] as `resample` does with a map that only magnifies.

    Reads whole rows, then whole columns, at positions known when the step is compiled: no FLOPs of
    matrix products, which would be a tenth of a small network's.

    Args:
      layers: float32 [B, H, W, C].
      shape: height and width of the result, at most H and W.
      zoom: magnification about the centre; below 1 the outermost pixels are repeated outside.

    Returns:
      float32 [B, height, width, C].
    """
    for axis, length in zip((1, 2), shape, strict=True):
        stored = layers.shape[axis]
        if length == stored and zoom == 1:
            continue
        points = _points(length, stored) / zoom + (stored - 1) / 2
        points = np.clip(points, 0, stored - 1)  # [length, n]
        low = np.minimum(np.floor(points).astype(np.int32), stored - 2)
        part = (points - low).astype(np.float32)
        ones = [1] * layers.ndim
        ones[axis] = length
        read = [
            jnp.take(layers, index + at, axis=axis) * weight.reshape(ones)
            for index, second in zip(low.T, part.T, strict=True)
            for at, weight in enumerate((1 - second, second))
        ]
        layers = sum(read[1:], read[0]) / points.shape[1]
    return layers


def _points(length: int, stored: int) -> np.ndarray:
    """Returns where the pixels of an axis are read, [length, n], in input pixels from the middle.

    Args:
      length: output pixels.
      stored: input pixels.
    """
    each = max(round(stored / length), 1)
    fine = np.arange(length * each) - (length * each - 1) / 2
    return (fine * (stored / (length * each))).reshape(length, each)


def _triangles(points: jax.Array, stored: int) -> jax.Array:
    """Returns the weights of bilinear reading at the means of points, [B, stored, N].

    Args:
      points: [B, N, n], input pixels from the middle.
      stored: input pixels.
    """
    grid = jnp.arange(stored) - (stored - 1) / 2
    apart = jnp.abs(points[:, None] - grid[:, None, None])  # [B, stored, N, n]
    return jnp.maximum(1.0 - apart, 0.0).mean(-1)


def _gather(layers: jax.Array, geometry: Geometry, shape: tuple[int, int]) -> jax.Array:
    """Resamples bilinearly by reading four pixels for each point; zero outside."""
    stored, (height, width) = layers.shape[1:3], shape
    scale_y, scale_x = stored[0] / height, stored[1] / width
    rows, columns = _points(height, stored[0]), _points(width, stored[1])  # [H, n], [W, m]
    y, x = rows.reshape(-1) / scale_y, columns.reshape(-1) / scale_x

    def one(layer: jax.Array, matrix: jax.Array, dx: jax.Array, dy: jax.Array) -> jax.Array:
        out = jnp.stack(jnp.meshgrid(x - dx * width, y - dy * height))  # [2, H n, W m]
        u, v = jnp.einsum("ij,jhw->ihw", matrix, out, precision="highest")
        points = [v * scale_y + (stored[0] - 1) / 2, u * scale_x + (stored[1] - 1) / 2]
        read = lambda plane: jax.scipy.ndimage.map_coordinates(plane, points, order=1)  # noqa: E731
        return jax.vmap(read, -1, -1)(layer)

    fine = jax.vmap(one)(layers, geometry.matrix, geometry.translate_x, geometry.translate_y)
    if rows.shape[1] == columns.shape[1] == 1:
        return fine
    return fine.reshape(len(layers), *rows.shape, *columns.shape, -1).mean((2, 4))


def _two_pass(
    layers: jax.Array, geometry: Geometry, reach: Reach, shape: tuple[int, int]
) -> jax.Array:
    """Resamples along the rows, then along the columns, without a gather; zero outside.

    Catmull and Smith, "3-D transformations of images in scanline order", SIGGRAPH 1980. With the
    matrix [[a, b], [c, d]] the first pass computes K(x, v) = I(alpha (x - tx) + beta v, v), where
    beta = b / d and alpha = a - b c / d, the second O(x, y) = K(x, c (x - tx) + d (y - ty)); here
    u and v are scaled to pixels of the input.
    In each pass the shear moves whole rows and the scale is the same for all rows: a matrix product
    with triangle weights. Cost per image: 2 (H W W + H H W) FLOPs for the products on the canvas,
    and with rotation or shear about 2 log2(H) selections per pixel.
    Without rotation and shear it equals bilinear resampling; with them, the shears interpolate once
    more, a blur of a fraction of a pixel.
    """
    stored, (height, width) = layers.shape[1:3], shape
    scale_y, scale_x = stored[0] / height, stored[1] / width
    (a, b), (c, d) = jnp.moveaxis(geometry.matrix, 0, -1)
    dx, dy = geometry.translate_x * width, geometry.translate_y * height
    x = _points(width, stored[1]) / scale_x
    y = _points(height, stored[0]) / scale_y
    moved_x, moved_y = x - dx[:, None, None], y - dy[:, None, None]  # [B, W, m], [B, H, n]
    # Largest |beta|, |c|, |alpha|, |d|: with angle t, shear s and zoom z they are tan(t + s),
    # sin(t) / z, cos(s) / (z cos(t + s)) and cos(t + s) / (z cos(s)).
    steep = math.radians(reach.rotate + reach.shear)
    beta_max, alpha_max = math.tan(steep), 1.0 / ((1.0 - reach.zoom) * math.cos(steep))
    turn = min(math.radians(reach.rotate), math.pi / 2)
    c_max, d_max = math.sin(turn) / (1 - reach.zoom), 1.0 / (1 - reach.zoom)
    d_max /= math.cos(math.radians(reach.shear))
    reach_x, reach_y = width * (0.5 + reach.translate), height * (0.5 + reach.translate)

    rows = jnp.moveaxis(layers, -1, 1)  # [B, C, stored H, stored W]
    v = jnp.arange(stored[0]) - (stored[0] - 1) / 2
    shift = scale_x / scale_y * (b / d)[:, None] * v
    most = scale_x / scale_y * beta_max * stored[0] / 2
    points = scale_x * (a - b * c / d)[:, None, None] * moved_x
    rows = _shear_and_scale(rows, shift, most, points, scale_x * alpha_max * reach_x)
    columns = rows.swapaxes(2, 3)  # [B, C, W, stored H]
    shift = scale_y * c[:, None] * moved_x.mean(-1)  # [B, W]
    most = scale_y * c_max * reach_x
    points = scale_y * d[:, None, None] * moved_y
    columns = _shear_and_scale(columns, shift, most, points, scale_y * d_max * reach_y)
    return jnp.transpose(columns, (0, 3, 2, 1))


def _shear_and_scale(
    rows: jax.Array, shift: jax.Array, most: float, points: jax.Array, farthest: float
) -> jax.Array:
    """Reads each row at `points` + `shift` by linear interpolation; zero outside.

    Args:
      rows: [B, C, R, L].
      shift: [B, R], pixels, one per row.
      most: bound on |shift|, 0 for no shift at all.
      points: [B, N, n], pixels from the middle of the row; the mean of n is read.
      farthest: bound on |points|.

    Returns:
      [B, C, R, N].
    """
    length = rows.shape[-1]
    pad = 0
    if most:
        # Only points within `most` of the row can reach it after the shift.
        pad = max(math.ceil(min(farthest - length / 2, most)), 0) + 1
        rows = _shift(rows, shift, math.ceil(most), pad)
    weights = _triangles(points, length + 2 * pad)
    # Three bfloat16 passes on a TPU: one pass would round to about half an 8-bit grey level.
    return jnp.einsum("bcrl,bln->bcrn", rows, weights, precision=jax.lax.Precision.HIGH)


def _shift(rows: jax.Array, shift: jax.Array, most: int, pad: int) -> jax.Array:
    """Computes out[b, c, r, i] = rows[b, c, r, i - pad + shift[b, r]], linear, zero outside.

    A barrel shifter: bit k of the whole-pixel shift selects between the row and the row moved by
    2^k pixels, so different shifts per row need log2 static slices and no gather.
    """
    bits = (2 * most + 1).bit_length()
    whole = jnp.floor(shift)
    left = pad + most  # index 0 stands for a shift of -most
    right = max(2**bits - most + pad, 0)
    rows = jnp.pad(rows, ((0, 0), (0, 0), (0, 0), (left, right)))
    amount = whole.astype(jnp.int32) + most
    for k in reversed(range(bits)):
        bit = (amount[:, None, :, None] >> k) & 1 == 1
        rows = jnp.where(bit, rows[..., 2**k :], rows[..., : -(2**k)])
    part = (shift - whole)[:, None, :, None]
    return rows[..., :-1] * (1.0 - part) + rows[..., 1:] * part

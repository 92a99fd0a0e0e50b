"""Pictures of which a box counts: cutting and turning inside a graph, whose shapes are fixed.

A cut changes the box and no pixel, a quarter turn moves pixels and box, and the pixels of the box
are read by products with matrices whose weights follow from it. What OpenCV and NumPy do to images
in `boneage_jax.inference.view`, these do to all images of a batch at once, one grey level of
rounding aside.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

Ends = tuple[jax.Array, jax.Array]  # first and the one after the last, float32 [B] each
_LEVELS = 256
_NEARLY = 1e-3  # grey levels, above what a sum of float32 is off by


class Boxed(NamedTuple):
    """Pictures and the boxes in them that count.

    Attributes:
      pixels: grey levels, whole numbers, float32 [B, S, S].
      rows: first row of the box and the one after its last.
      columns: likewise.
    """

    pixels: jax.Array
    rows: Ends
    columns: Ends

    @property
    def side(self) -> int:
        """S, pixels."""
        return self.pixels.shape[1]

    @property
    def height(self) -> jax.Array:
        """Heights of the boxes, [B]."""
        return self.rows[1] - self.rows[0]

    @property
    def width(self) -> jax.Array:
        """Widths of the boxes, [B]."""
        return self.columns[1] - self.columns[0]


def whole(pixels: jax.Array) -> Boxed:
    """Returns pictures, float32 [B, S, S], with boxes around everything."""
    zero = jnp.zeros(pixels.shape[0])
    ends = zero, zero + pixels.shape[1]
    return Boxed(pixels, ends, ends)


def choose(condition: jax.Array, yes: Boxed, no: Boxed) -> Boxed:
    """Chooses between pictures, bool [B]."""
    pixels = jnp.where(_spread(condition), yes.pixels, no.pixels)
    rows, columns = jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes[1:], no[1:])
    return Boxed(pixels, rows, columns)


def turned(picture: Boxed, quarters: jax.Array) -> Boxed:
    """Turns counter-clockwise by quarters, 0 to 3, [B]; exact."""
    pixels, rows, columns = picture
    side = picture.side
    once = Boxed(jnp.flip(jnp.swapaxes(pixels, 1, 2), 1), _mirrored(columns, side), rows)
    picture = choose((quarters == 1) | (quarters == 3), once, picture)
    pixels, rows, columns = picture
    twice = Boxed(jnp.flip(pixels, (1, 2)), _mirrored(rows, side), _mirrored(columns, side))
    return choose(quarters >= 2, twice, picture)


def turned_by_45(picture: Boxed) -> Boxed:
    """Turns counter-clockwise by 45 degrees about the centre of the box, bilinear.

    The box stays. Its corners are filled with the median of its edges.
    """
    pixels, rows, columns = picture
    side, half = picture.side, jnp.sqrt(0.5)
    middle_y, middle_x = (_spread((ends[0] + ends[1] - 1) / 2) for ends in (rows, columns))
    index = jnp.arange(side, dtype=jnp.float32)
    down, right = index.reshape(side, 1) - middle_y, index - middle_x
    y, x = middle_y + half * (right + down), middle_x + half * (right - down)
    fill = jnp.round(_spread(_median_of_edges(picture)))
    top, left = jnp.floor(y), jnp.floor(x)
    flat = pixels.reshape(-1, side * side)
    found = jnp.zeros_like(y)
    for row, weight_y in ((top, 1 - (y - top)), (top + 1, y - top)):
        for column, weight_x in ((left, 1 - (x - left)), (left + 1, x - left)):
            at = jnp.clip(row, 0, side - 1) * side + jnp.clip(column, 0, side - 1)
            at = at.astype(jnp.int32).reshape(-1, side * side)
            values = jnp.take_along_axis(flat, at, axis=1).reshape(-1, side, side)
            known = _within(row, rows) & _within(column, columns)
            found += weight_y * weight_x * jnp.where(known, values, fill)
    return Boxed(_rounded(found), rows, columns)


def without_margins(picture: Boxed) -> Boxed:
    """Cuts rows, then columns, at the edges of boxes that are of one grey value."""
    pixels, rows, columns = picture
    for axis in (2, 1):
        across, along = (rows, columns) if axis == 2 else (columns, rows)
        counts = _marked(along, picture.side)
        counts = jnp.expand_dims(counts, 3 - axis)
        most = jnp.where(counts, pixels, -1.0).max(axis)
        least = jnp.where(counts, pixels, float(_LEVELS)).min(axis)
        found = _ends((most > least) & _marked(across, picture.side), across)
        rows, columns = (found, columns) if axis == 2 else (rows, found)
    return Boxed(pixels, rows, columns)


def without_white_frame(picture: Boxed, white: int, least: int) -> Boxed:
    """Cuts rows and columns at the edges of whole pictures that are at least `white`.

    Args:
      picture: its box holds everything.
      white: grey level.
      least: rows and columns that are darker somewhere; pictures with fewer are left.
    """
    by_row, by_column = (picture.pixels.min(axis) < white for axis in (2, 1))
    enough = jnp.minimum(by_row.sum(1), by_column.sum(1)) >= least
    cut = Boxed(picture.pixels, _ends(by_row, picture.rows), _ends(by_column, picture.columns))
    return choose(enough, cut, picture)


def averaged(picture: Boxed, side: int) -> jax.Array:
    """Shrinks boxes to squares by averaging areas, rounded, float32 [B, side, side]."""
    down, across = (_areas(ends, picture.side, side) for ends in picture[1:])
    return _product(down, picture.pixels, across)


def fitted(picture: Boxed, fit: str) -> jax.Array:
    """Fits boxes into squares as `boneage_jax.data.files.fit_square` does; float32 [B, S, S].

    A box that is as large as its picture stays what it is, bit for bit.

    Args:
      picture: pictures whose sides are those of the squares.
      fit: pad or stretch.
    """
    side = picture.side
    if fit == "stretch":
        full = jnp.full_like(picture.height, side)
        sizes = [(full, 0 * full)] * 2
    else:
        scale = side / jnp.maximum(picture.height, picture.width)
        lengths = (jnp.clip(jnp.round(n * scale), 1, side) for n in (picture.height, picture.width))
        sizes = [(length, jnp.floor((side - length) / 2)) for length in lengths]
    matrices = [
        _triangles(ends, side, length, start)
        for ends, (length, start) in zip(picture[1:], sizes, strict=True)
    ]
    square = _product(matrices[0], picture.pixels, matrices[1])
    if fit == "stretch":
        return square
    (height, top), (width, left) = sizes
    placed = Boxed(square, (top, top + height), (left, left + width))
    low = height < side
    fill = jnp.floor(_spread(_median_of_edges(placed, low, ~low)))
    rows, columns = (_marked(ends, side) for ends in placed[1:])
    inside = jnp.expand_dims(rows, 2) & jnp.expand_dims(columns, 1)
    return jnp.where(inside, square, fill)


def _median_of_edges(
    picture: Boxed, level: jax.Array | bool = True, upright: jax.Array | bool = True
) -> jax.Array:
    """Returns the median of the edges of boxes, float32 [B].

    Args:
      picture: pictures.
      level: whether the first and the last row count, bool [B].
      upright: whether the first and the last column do.
    """
    pixels, rows, columns = picture
    index = jnp.arange(picture.side)
    edges, counts = [], []
    for ends, others, use, axis in ((rows, columns, level, 1), (columns, rows, upright, 2)):
        for edge in (ends[0], ends[1] - 1):
            here = jnp.expand_dims(index == jnp.expand_dims(edge, 1), 3 - axis)
            edges.append(jnp.where(here, pixels, 0.0).sum(axis))
            counts.append(_marked(others, picture.side) & jnp.reshape(jnp.asarray(use), (-1, 1)))
    values, known = jnp.concatenate(edges, 1), jnp.concatenate(counts, 1)
    below = jnp.expand_dims(values, 2) <= jnp.arange(_LEVELS, dtype=jnp.float32)
    ranks = (below & jnp.expand_dims(known, 2)).sum(1).astype(jnp.float32)  # [B, 256]
    count = known.sum(1).astype(jnp.float32)
    middles = (jnp.floor((count - 1) / 2), jnp.floor(count / 2))
    levels = [(ranks <= jnp.expand_dims(middle, 1)).sum(1) for middle in middles]
    return (levels[0] + levels[1]).astype(jnp.float32) / 2


def _areas(ends: Ends, side: int, length: int) -> jax.Array:
    """Returns the part of each cell that each pixel is, [B, length, side]."""
    start, cell = _spread(ends[0]), _spread((ends[1] - ends[0]) / length)
    first = start + cell * jnp.arange(length, dtype=jnp.float32).reshape(length, 1)
    pixel = jnp.arange(side, dtype=jnp.float32)
    shared = jnp.minimum(first + cell, pixel + 1) - jnp.maximum(first, pixel)
    return jnp.maximum(shared, 0) / cell


def _triangles(ends: Ends, side: int, length: jax.Array, start: jax.Array) -> jax.Array:
    """Returns the weights of bilinear reading of `length` pixels, put at `start`, [B, S, S]."""
    index = jnp.arange(side, dtype=jnp.float32)
    first, last, scale, start = (
        jnp.expand_dims(x, 1) for x in (ends[0], ends[1] - 1, (ends[1] - ends[0]) / length, start)
    )
    points = jnp.clip(first + (index - start + 0.5) * scale - 0.5, first, last)
    return jnp.maximum(1 - jnp.abs(jnp.expand_dims(points, 2) - index), 0)


def _product(down: jax.Array, pixels: jax.Array, across: jax.Array) -> jax.Array:
    rows = jnp.matmul(down, pixels, precision="highest")
    return _rounded(jnp.matmul(rows, jnp.swapaxes(across, 1, 2), precision="highest"))


def _rounded(grey: jax.Array) -> jax.Array:
    """Rounds halves up, and what last bits took below a half: nearly alike in all runtimes."""
    return jnp.floor(grey + (0.5 + _NEARLY))


def _marked(ends: Ends, side: int) -> jax.Array:
    """Returns which rows or columns are between ends, bool [B, side]."""
    first, after = (jnp.expand_dims(end, 1) for end in ends)
    index = jnp.arange(side, dtype=jnp.float32)
    return (index >= first) & (index < after)


def _ends(marked: jax.Array, otherwise: Ends) -> Ends:
    """Returns the first marked position and the one after the last; `otherwise` if none is."""
    side = marked.shape[1]
    index = jnp.arange(side, dtype=jnp.float32)
    first = jnp.where(marked, index, float(side)).min(1)
    after = jnp.where(marked, index + 1, 0.0).max(1)
    known = marked.any(1)
    return jnp.where(known, first, otherwise[0]), jnp.where(known, after, otherwise[1])


def _within(position: jax.Array, ends: Ends) -> jax.Array:
    return (position >= _spread(ends[0])) & (position < _spread(ends[1]))


def _mirrored(ends: Ends, side: int) -> Ends:
    return side - ends[1], side - ends[0]


def _spread(x: jax.Array) -> jax.Array:
    """Returns numbers of pictures, [B], as [B, 1, 1]: an index would be a gather in ONNX."""
    return jnp.expand_dims(x, (1, 2))

// Puts radiographs right that are turned, inverted or small, and tells what is no single hand, as
// inference/view.py does with the same small network.
"use strict";

const SIDE = 48, TURNS = 8, KERNELS = [5, 3, 3, 3], CHANNELS = [1, 8, 16, 32, 48];
const VARIANTS = [[0, false], [1, true], [2, false], [3, true]]; // quarter turns, inversion
const PROPER = Math.log(0.8), SURE = Math.log(0.5), SURE_INVERTED = Math.log(0.7);
const SMALL = 0.72, TIMES = 3, MIN_SIDE = 32, WHITE = 245, LEAST_GREY = 0.3;

/** A part of a picture; right and bottom are excluded. */
function crop(image, left, top, right, bottom) {
  const width = right - left, height = bottom - top, data = new Uint8Array(width * height);
  for (let y = 0; y < height; y++) {
    const start = (top + y) * image.width + left;
    data.set(image.data.subarray(start, start + width), y * width);
  }
  return { data, width, height };
}

/** First and last index for which `holds`, or null. */
function ends(length, holds) {
  let first = 0, last = length - 1;
  while (first < length && !holds(first)) first++;
  while (last > first && !holds(last)) last--;
  return first < length ? [first, last + 1] : null;
}

function varies(image, rows) {
  const { data, width, height } = image;
  const at = rows ? (line, n) => data[line * width + n] : (line, n) => data[n * width + line];
  const count = rows ? width : height;
  return (line) => {
    const value = at(line, 0);
    for (let n = 1; n < count; n++) if (at(line, n) !== value) return true;
    return false;
  };
}

/** The picture without rows and columns at its edges of one grey value. */
function withoutMargins(image) {
  const rows = ends(image.height, varies(image, true));
  if (!rows) return image;
  const inner = crop(image, 0, rows[0], image.width, rows[1]);
  const columns = ends(inner.width, varies(inner, false));
  return columns ? crop(inner, columns[0], 0, columns[1], inner.height) : inner;
}

/** Cuts off white margins, as scanners leave them; null if there are none. */
function withoutFrame({ data, width, height }) {
  const darkRow = (y) => {
    for (let x = 0; x < width; x++) if (data[y * width + x] < WHITE) return true;
    return false;
  };
  const darkColumn = (x) => {
    for (let y = 0; y < height; y++) if (data[y * width + x] < WHITE) return true;
    return false;
  };
  const count = (length, holds) => Array.from({ length }, (_, n) => n).filter(holds).length;
  if (Math.min(count(height, darkRow), count(width, darkColumn)) < MIN_SIDE) return null;
  const rows = ends(height, darkRow), columns = ends(width, darkColumn);
  if (rows[1] - rows[0] === height && columns[1] - columns[0] === width) return null;
  return crop({ data, width, height }, columns[0], rows[0], columns[1], rows[1]);
}

function thumbnail(image) {
  return resize(shrunk(withoutMargins(image), 4 * SIDE), SIDE, SIDE, true);
}

/** Averages blocks of whole pixels, as large as leave `least` on the short side. */
function shrunk(image, least) {
  const factor = Math.floor(Math.min(image.width, image.height) / least);
  if (factor < 2) return image;
  const [width, height] = [image.width, image.height].map((length) => Math.floor(length / factor));
  return resize(crop(image, 0, 0, width * factor, height * factor), width, height, true);
}

/** Whether a thumbnail has two tones, as masks and silhouettes have. */
function isTwoToned({ data }) {
  const low = Math.min(...data), range = Math.max(...data) - low;
  const lit = data.filter((value) => value - low > 0.1 * range);
  return lit.filter((value) => value - low < 0.9 * range).length < LEAST_GREY * lit.length;
}

function inverted({ data, width, height }) {
  return { data: data.map((value) => 255 - value), width, height };
}

/** Turns a picture counter-clockwise by quarters. */
function quarters(image, count) {
  const { data, width, height } = image, turns = ((count % 4) + 4) % 4;
  if (!turns) return image;
  const swap = turns % 2, wide = swap ? height : width, high = swap ? width : height;
  const out = new Uint8Array(data.length);
  for (let y = 0; y < high; y++) {
    for (let x = 0; x < wide; x++) {
      const [row, column] =
        turns === 1 ? [x, width - 1 - y] : turns === 2 ? [height - 1 - y, width - 1 - x] : [height - 1 - x, y];
      out[y * wide + x] = data[row * width + column];
    }
  }
  return { data: out, width: wide, height: high };
}

/** Turns a picture counter-clockwise about its centre by steps of 45 degrees. */
function turned(image, steps) {
  const whole = ((steps % TURNS) + TURNS) % TURNS, quarter = quarters(image, whole >> 1);
  if (whole % 2 === 0) return quarter;
  const { data, width, height } = quarter, out = new Uint8Array(data.length), edges = [];
  edges.push(...data.subarray(0, width), ...data.subarray(-width));
  for (let y = 0; y < height; y++) edges.push(data[y * width], data[(y + 1) * width - 1]);
  edges.sort((a, b) => a - b); // an even number of them
  const fill = (edges[edges.length / 2 - 1] + edges[edges.length / 2]) / 2;
  const at = (x, y) => (x >= 0 && y >= 0 && x < width && y < height ? data[y * width + x] : fill);
  const half = Math.SQRT1_2, cx = (width - 1) / 2, cy = (height - 1) / 2;
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const u = cx + half * (x - cx - (y - cy)), v = cy + half * (x - cx + (y - cy));
      const left = Math.floor(u), top = Math.floor(v), right = u - left, low = v - top;
      const above = at(left, top) * (1 - right) + at(left + 1, top) * right;
      const below = at(left, top + 1) * (1 - right) + at(left + 1, top + 1) * right;
      out[y * width + x] = roundEven(above * (1 - low) + below * low);
    }
  }
  return { data: out, width, height };
}

function logSoftmax(values) {
  const most = Math.max(...values);
  const sum = most + Math.log(values.reduce((total, value) => total + Math.exp(value - most), 0));
  return values.map((value) => value - sum);
}

class View {
  /** `weights` holds the arrays of the network one after the other, float32. */
  constructor(weights, threshold) {
    this.threshold = threshold;
    let at = 0;
    const take = (rows, columns) => {
      const values = weights.subarray(at, (at += rows * columns));
      return { values, rows, columns };
    };
    this.kernels = KERNELS.map((size, n) => take(size * size * CHANNELS[n], CHANNELS[n + 1]));
    this.biases = KERNELS.map((_, n) => take(1, CHANNELS[n + 1]));
    this.hidden = take(9 * CHANNELS[4], 48);
    this.hiddenBias = take(1, 48);
    this.output = take(48, TURNS + 8);
    this.outputBias = take(1, TURNS + 8);
  }

  /** Outputs of the network for a thumbnail. */
  apply({ data }) {
    const mean = data.reduce((sum, value) => sum + value, 0) / data.length;
    const spread = Math.sqrt(data.reduce((sum, value) => sum + (value - mean) ** 2, 0) / data.length) + 2;
    let x = Float64Array.from(data, (value) => (value - mean) / spread), side = SIDE;
    this.kernels.forEach(({ values, columns }, n) => {
      const size = KERNELS[n], half = size >> 1, inputs = CHANNELS[n], small = side / 2;
      const out = new Float64Array(small * small * columns);
      for (let row = 0; row < small; row++) {
        for (let column = 0; column < small; column++) {
          const to = (row * small + column) * columns;
          for (let c = 0; c < columns; c++) out[to + c] = this.biases[n].values[c];
          for (let i = 0; i < size; i++) {
            for (let j = 0; j < size; j++) {
              const y = 2 * row + i - half, z = 2 * column + j - half;
              if (y < 0 || z < 0 || y >= side || z >= side) continue;
              for (let k = 0; k < inputs; k++) {
                const value = x[(y * side + z) * inputs + k];
                const from = ((i * size + j) * inputs + k) * columns;
                for (let c = 0; c < columns; c++) out[to + c] += value * values[from + c];
              }
            }
          }
          for (let c = to; c < to + columns; c++) out[c] = Math.max(out[c], 0.1 * out[c]);
        }
      }
      x = out;
      side = small;
    });
    const dense = (input, matrix, bias) =>
      Array.from({ length: matrix.columns }, (_, c) =>
        input.reduce((sum, value, k) => sum + value * matrix.values[k * matrix.columns + c], bias.values[c]),
      );
    const hidden = dense(x, this.hidden, this.hiddenBias).map((value) => Math.max(value, 0.1 * value));
    return dense(hidden, this.output, this.outputBias);
  }

  /** Logarithms of probabilities, and where the hand lies, averaged over variants of a thumbnail. */
  read(small, variants) {
    const found = variants.map(([quarter, swap]) => {
      const picture = quarters(swap ? inverted(small) : small, quarter), outputs = this.apply(picture);
      const turn = logSoftmax(outputs.slice(0, TURNS));
      const grey = logSoftmax([0, outputs[TURNS]]);
      return {
        turn: turn.map((_, n) => turn[(n + 2 * quarter) % TURNS]),
        inverted: swap ? grey.reverse() : grey,
        kind: logSoftmax(outputs.slice(TURNS + 1, TURNS + 4)),
        frame: outputs.slice(TURNS + 4),
      };
    });
    const mean = (name) =>
      found[0][name].map((_, n) => found.reduce((sum, each) => sum + each[name][n], 0) / found.length);
    const seen = { turn: mean("turn"), inverted: mean("inverted"), kind: mean("kind"), frame: found[0].frame };
    return { ...seen, proper: seen.turn[0] + seen.inverted[0] + seen.kind[0] };
  }

  /** Returns the picture as it should be for a network of this size, with notes on what was done. */
  putRight(picture, size) {
    const inside = withoutFrame(picture), notes = inside ? ["white frame: cut off"] : [];
    let image = inside ?? picture, steps = 0, swapped = false;
    for (let time = 0; time < TIMES; time++) {
      const small = thumbnail(image);
      let seen = this.read(small, VARIANTS.slice(0, 1));
      if (seen.proper < PROPER) {
        seen = this.read(small, VARIANTS);
        if (seen.kind[0] < SURE) break;
        const best = seen.turn.indexOf(Math.max(...seen.turn));
        const step = seen.turn[best] > SURE ? best : 0, swap = seen.inverted[1] > SURE_INVERTED;
        if (step || swap) {
          if (step % 2) image = shrunk(image, 2 * size);
          image = turned(swap ? inverted(image) : image, -step);
          steps = (steps + step) % TURNS;
          swapped = swapped !== swap;
          continue;
        }
      }
      const cut = cutOut(image, seen.frame);
      if (!cut) break;
      image = cut;
      notes.push("small hand: cut out");
    }
    const said = [];
    if (steps) said.push(`turned by ${45 * Math.min(steps, TURNS - steps)} degrees: put upright`);
    if (swapped) said.push("inverted: grey levels swapped");
    return { image, notes: [...new Set([...said, ...notes])] };
  }

  /** Returns why a square is not accepted, or an empty text. */
  judge(square, size) {
    const small = thumbnail({ data: square, width: size, height: size });
    if (isTwoToned(small)) return "two tones only: a mask or a drawing";
    const seen = this.read(small, VARIANTS);
    if (seen.proper >= this.threshold) return "";
    return seen.kind[1] > Math.max(seen.kind[0], seen.kind[2]) ? "more than one hand" : "no hand is recognised";
  }
}

/** The part around a hand that is small in its picture, or null if it is not. */
function cutOut(image, frame) {
  const inner = withoutMargins(image);
  const [width, height] = frame.slice(2).map((value) => Math.exp(Math.min(value, 0)));
  if (Math.max((width * inner.width) / image.width, (height * inner.height) / image.height) > SMALL) return null;
  if (Math.max(width, height) > SMALL) return Math.min(inner.width, inner.height) >= MIN_SIDE ? inner : null;
  const edges = (length, middle, part) =>
    [-0.5, 0.5].map((half) => Math.min(length, Math.max(0, roundEven(length * (0.5 + middle + half * part)))));
  const [left, right] = edges(inner.width, frame[0], width), [top, bottom] = edges(inner.height, frame[1], height);
  return Math.min(right - left, bottom - top) >= MIN_SIDE ? crop(inner, left, top, right, bottom) : null;
}

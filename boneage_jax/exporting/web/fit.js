// Fits a grey picture into the square that the network reads, as data/files.py does with OpenCV.
"use strict";

const roundEven = (x) => {
  const low = Math.floor(x);
  if (x - low !== 0.5) return Math.round(x);
  return low % 2 ? low + 1 : low;
};

/**
 * Which source pixels make a pixel of the result, and how much each weighs (INTER_AREA). OpenCV adds in
 * float32, and so does `resize`, to round the same way where a sum lies half between two levels.
 */
function areaTable(from, to) {
  const scale = from / to;
  return Array.from({ length: to }, (_, at) => {
    const start = at * scale, end = start + scale;
    const cell = Math.min(scale, from - start);
    const last = Math.min(Math.floor(end), from - 1);
    const first = Math.min(Math.ceil(start), last);
    const taps = [];
    if (first - start > 1e-3) taps.push([first - 1, (first - start) / cell]);
    for (let pixel = first; pixel < last; pixel++) taps.push([pixel, 1 / cell]);
    if (end - last > 1e-3) taps.push([last, Math.min(end - last, 1, cell) / cell]);
    return taps.map(([pixel, weight]) => [pixel, Math.fround(weight)]);
  });
}

/** The same for enlarging (INTER_LINEAR). */
function linearTable(from, to) {
  const scale = from / to;
  return Array.from({ length: to }, (_, at) => {
    const place = Math.min(Math.max((at + 0.5) * scale - 0.5, 0), from - 1);
    const pixel = Math.min(Math.floor(place), Math.max(from - 2, 0));
    const part = place - pixel;
    return part ? [[pixel, 1 - part], [pixel + 1, part]] : [[pixel, 1]];
  });
}

/** Resizes {data, width, height}, 8-bit grey. */
function resize(image, width, height, area) {
  if (width === image.width && height === image.height) return image;
  const blocks = [image.width / width, image.height / height];
  const data = new Uint8Array(width * height);
  if (area && blocks[0] === 2 && blocks[1] === 2) {
    // OpenCV rounds a half up here, and to even elsewhere.
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const at = 2 * y * image.width + 2 * x, below = at + image.width;
        const sum = image.data[at] + image.data[at + 1] + image.data[below] + image.data[below + 1];
        data[y * width + x] = (sum + 2) >> 2;
      }
    }
    return { data, width, height };
  }
  const table = (from, to) => (area && from >= to ? areaTable(from, to) : linearTable(from, to));
  const columns = table(image.width, width), rows = table(image.height, height);
  const whole = blocks.every(Number.isInteger) && area ? blocks[0] * blocks[1] : 0;
  const narrow = new Map();
  const row = (y) => {
    if (!narrow.has(y)) {
      const line = new Float32Array(width), start = y * image.width;
      columns.forEach((taps, x) => {
        for (const [pixel, weight] of taps) {
          line[x] += Math.fround(image.data[start + pixel] * (whole ? 1 : weight));
        }
      });
      narrow.set(y, line);
    }
    return narrow.get(y);
  };
  rows.forEach((taps, y) => {
    const sums = new Float32Array(width);
    for (const [pixel, weight] of taps) {
      const line = row(pixel);
      for (let x = 0; x < width; x++) sums[x] += Math.fround(line[x] * (whole ? 1 : weight));
    }
    for (let x = 0; x < width; x++) data[y * width + x] = roundEven(whole ? Math.fround(sums[x] * Math.fround(1 / whole)) : sums[x]);
    for (const known of narrow.keys()) if (known < taps[0][0]) narrow.delete(known);
  });
  return { data, width, height };
}

/** The median of bytes, rounded down. */
function median(values) {
  const sorted = Uint8Array.from(values).sort(), middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) >> 1;
}

/** Shrinks a picture into a square of `size` pixels; `how` is pad (aspect kept) or stretch. */
function fitSquare(image, size, how) {
  const area = size < Math.max(image.width, image.height);
  if (how === "stretch") return resize(image, size, size, area);
  const scale = size / Math.max(image.width, image.height);
  const side = (length) => Math.min(size, Math.max(1, roundEven(length * scale)));
  const small = resize(image, side(image.width), side(image.height), area);
  const { data, width, height } = small;
  if (width === height) return small;
  const edges = [];
  if (height < size) edges.push(...data.subarray(0, width), ...data.subarray(-width));
  else for (let y = 0; y < height; y++) edges.push(data[y * width], data[(y + 1) * width - 1]);
  const square = new Uint8Array(size * size).fill(median(edges));
  const top = (size - height) >> 1, left = (size - width) >> 1;
  for (let y = 0; y < height; y++) {
    square.set(data.subarray(y * width, (y + 1) * width), (top + y) * size + left);
  }
  return { data: square, width: size, height: size };
}

// From pixel values of any depth to 8-bit grey, as data/grey.py does.
"use strict";

/** A file that cannot be read; its message is for the user. */
class UnreadableImage extends Error {}

/** BT.601, as OpenCV rounds it. */
const luma = (red, green, blue) => (9798 * red + 19235 * green + 3735 * blue + 16384) >> 15;

/** Values [n] or [n * channels] to bytes: kept if they are 8-bit values already, else scaled. */
function toBytes(values, { shown = null, inverted = false, keep = true } = {}) {
  const pixels = shown ? values.filter((_, at) => shown[at]) : values;
  if (!pixels.length) throw new UnreadableImage("all of its pixels are padding");
  let low = Infinity, high = -Infinity, whole = true;
  for (const value of pixels) {
    if (value < low) low = value;
    if (value > high) high = value;
    if (whole && !Number.isInteger(value)) whole = false;
  }
  if (!Number.isFinite(high - low)) throw new UnreadableImage("it holds values that are not finite");
  const integers = !(values instanceof Float32Array || values instanceof Float64Array);
  if (keep && low >= 0 && high <= 255 && (integers || (high > 1 && whole))) {
    const kept = Uint8Array.from(values, (v) => {
      const value = inverted ? low + high - v : v;
      return Math.min(Math.max(value, 0), 255);
    });
    return { bytes: kept, ranged: false };
  }
  let [black, white] = percentiles(pixels, [0.1, 99.9]);
  if (black === white) [black, white] = [low, high];
  if (inverted) [black, white] = [white, black];
  return { bytes: Uint8Array.from(stretch(values, black, white), roundEven), ranged: true };
}

/** Maps `black` to 0 and `white` to 255, clipped, not rounded; 0 everywhere if they are equal. */
function stretch(values, black, white) {
  const scale = black === white ? 0 : 255 / (white - black);
  return Float64Array.from(values, (v) => Math.min(Math.max((v - black) * scale, 0), 255));
}

/** Percentiles of values, linear between two of them, as NumPy's. */
function percentiles(values, wanted) {
  const sorted = values.slice().sort(); // numbers in number order: typed arrays do so
  return wanted.map((percent) => {
    const place = (percent / 100) * (sorted.length - 1), low = Math.floor(place);
    const next = sorted[Math.min(low + 1, sorted.length - 1)];
    return sorted[low] + (next - sorted[low]) * (place - low);
  });
}

/** Bytes of 1 to 4 channels, alpha last, to one. */
function toGrey(bytes, channels, alpha = null) {
  const count = bytes.length / channels, grey = new Uint8Array(count);
  for (let at = 0; at < count; at++) {
    const first = at * channels;
    const value = channels < 3 ? bytes[first] : luma(bytes[first], bytes[first + 1], bytes[first + 2]);
    grey[at] = alpha ? roundEven(value * Math.fround(alpha[at])) : value;
  }
  return grey;
}

// Reads PNG, JPEG and DICOM files as 8-bit grey.
"use strict";

const MAX_PIXELS = 100e6;

/** Reads a file; returns {data, width, height, notes, sex}. */
async function readRadiograph(bytes) {
  const starts = (...head) => head.every((byte, at) => bytes[at] === byte);
  const text = (from, to) => String.fromCharCode(...bytes.subarray(from, to));
  if (starts(0x89, 0x50, 0x4e, 0x47)) return readPng(bytes);
  if (starts(0xff, 0xd8, 0xff)) return { ...(await decodeInBrowser(bytes)), notes: [], sex: -1 };
  if (text(128, 132) === "DICM" || (bytes[1] === 0 && [2, 8].includes(bytes[0]))) return readDicom(bytes);
  throw new UnreadableImage("it is not a PNG, JPEG or DICOM file");
}

function checkSize(width, height) {
  if (!(width > 0 && height > 0)) throw new UnreadableImage("it holds no pixels");
  if (width * height > MAX_PIXELS) throw new UnreadableImage("it has more than 100 million pixels");
}

async function readPng(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  if (bytes.length < 33) throw new UnreadableImage("the PNG file is damaged");
  checkSize(view.getUint32(16), view.getUint32(20));
  const depth = bytes[24], palette = bytes[25] === 3;
  const rest = { notes: [], sex: -1 };
  // The browser shows 8 of 16 bits, and rounds where pixels are transparent.
  if (palette || depth < 8) return { ...(await decodeInBrowser(bytes)), ...rest };
  let png;
  try {
    png = libraries.decodePng(bytes);
  } catch {
    throw new UnreadableImage("the PNG file is damaged");
  }
  const { width, height, channels } = png, count = width * height;
  const colours = channels > 2 ? 3 : 1, hasAlpha = channels % 2 === 0;
  let values = png.data, alpha = null;
  if (hasAlpha) {
    const most = depth === 16 ? 65535 : 255;
    values = new png.data.constructor(count * colours);
    alpha = new Float32Array(count);
    for (let at = 0; at < count; at++) {
      for (let c = 0; c < colours; c++) values[at * colours + c] = png.data[at * channels + c];
      alpha[at] = png.data[at * channels + channels - 1] / most;
    }
  }
  const { bytes: scaled, ranged } = depth === 16 ? toBytes(values) : { bytes: values, ranged: false };
  if (ranged) rest.notes.push("no window: scaled by the range of its values");
  return { data: toGrey(scaled, colours, alpha), width, height, ...rest };
}

/** Lets the browser decode a picture of 8 bits. */
async function decodeInBrowser(bytes) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(new Blob([bytes]), {
      colorSpaceConversion: "none",
      premultiplyAlpha: "none",
    });
  } catch {
    throw new UnreadableImage("the picture is damaged, or of a kind that the browser does not show");
  }
  const { width, height } = bitmap;
  checkSize(width, height);
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const pixels = context.getImageData(0, 0, width, height).data;
  const alpha = Float32Array.from({ length: width * height }, (_, at) => pixels[4 * at + 3] / 255);
  return { data: toGrey(pixels, 4, alpha), width, height };
}

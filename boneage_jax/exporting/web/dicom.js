// Reads DICOM files of one frame as data/dicom.py and data/dicom_display.py do.
"use strict";

const SYNTAXES = {
  "1.2.840.10008.1.2": "raw",
  "1.2.840.10008.1.2.1": "raw",
  "1.2.840.10008.1.2.2": "raw",
  "1.2.840.10008.1.2.5": "rle",
  "1.2.840.10008.1.2.4.50": "jpeg",
  "1.2.840.10008.1.2.4.57": "lossless",
  "1.2.840.10008.1.2.4.70": "lossless",
  "1.2.840.10008.1.2.4.80": "charls",
  "1.2.840.10008.1.2.4.81": "charls",
  "1.2.840.10008.1.2.4.90": "openJpeg",
  "1.2.840.10008.1.2.4.91": "openJpeg",
};
const REFUSED = {
  x20500010: "a Presentation LUT Sequence",
  x52009230: "enhanced (multi-frame) DICOM",
  x7fe00008: "pixels that are floating-point numbers",
  x7fe00009: "pixels that are floating-point numbers",
};

async function readDicom(bytes) {
  const dataset = parseDicom(bytes);
  for (const [tag, what] of Object.entries(REFUSED)) {
    if (dataset.elements[tag]) throw unsupported(what);
  }
  if (!dataset.elements.x7fe00010) throw new UnreadableImage("the DICOM file holds no image");
  const header = readHeader(dataset);
  checkSize(header.width, header.height);
  const { width, height } = header;
  const notes = [], sex = { M: 1, F: 0 }[(dataset.string("x00100040") || "").trim()] ?? -1;
  const stored = await decodeFrame(dataset, header, bytes);
  if (header.samples === 3) {
    if (stored.grey) return { data: stored.grey, width, height, notes, sex };
    return { data: toGrey(interleaved(stored, header), 3), width, height, notes, sex };
  }
  const values = stored.grey || stored;
  const wanted = width * height;
  if (values.length < wanted) throw new UnreadableImage("the DICOM file is cut short");
  const data = showGrey(dataset, header, values.subarray(0, wanted), notes);
  return { data, width, height, notes, sex };
}

function parseDicom(bytes) {
  const { dicomParser } = libraries;
  try {
    return dicomParser.parseDicom(bytes);
  } catch {
    // Old files lack preamble and meta header; letters for the type of an element tell the syntax.
    const explicit = [4, 5].every((at) => bytes[at] >= 65 && bytes[at] <= 90);
    try {
      return dicomParser.parseDicom(bytes, { TransferSyntaxUID: `1.2.840.10008.1.2${explicit ? ".1" : ""}` });
    } catch (error) {
      const reason = error.exception || error.message || error;
      throw new UnreadableImage(`it is not a readable DICOM file: ${reason}`);
    }
  }
}

function readHeader(dataset) {
  const number = (tag, otherwise = 0) => dataset.uint16(tag) ?? otherwise;
  const header = {
    syntax: (dataset.string("x00020010") || "1.2.840.10008.1.2").trim(),
    photometric: (dataset.string("x00280004") || "").trim(),
    samples: number("x00280002", 1),
    planar: number("x00280006"),
    height: number("x00280010"),
    width: number("x00280011"),
    allocated: number("x00280100"),
    bits: number("x00280101", number("x00280100")),
    signed: number("x00280103") === 1,
  };
  const frames = dataset.intString("x00280008") || 1;
  if (frames !== 1) throw new UnreadableImage(`the DICOM file holds ${frames} frames; one is read`);
  const grey = ["MONOCHROME1", "MONOCHROME2"].includes(header.photometric);
  const coloured = ["RGB", "YBR_FULL_422", "YBR_FULL"].includes(header.photometric);
  const kind = SYNTAXES[header.syntax];
  if (!kind) throw unsupported(`transfer syntax ${header.syntax}`);
  if (!(grey && header.samples === 1) && !(coloured && header.samples === 3)) {
    throw unsupported(`photometric interpretation ${header.photometric}`);
  }
  if (coloured && kind !== "jpeg" && !(kind === "raw" && header.photometric === "RGB")) {
    throw unsupported("colour that is compressed in this way");
  }
  const depths = coloured ? [8] : [8, 16];
  if (!depths.includes(header.allocated) || header.bits < 1 || header.bits > header.allocated) {
    throw unsupported(`pixels of ${header.allocated} bits`);
  }
  if (number("x00280102", header.bits - 1) !== header.bits - 1) {
    throw new UnreadableImage("High Bit does not belong to Bits Stored");
  }
  return { ...header, kind };
}

const unsupported = (what) =>
  new UnreadableImage(`${what} is not supported by this page; save the radiograph as PNG`);

/** Returns stored values of one sample each, or {grey} where the browser decoded bytes. */
async function decodeFrame(dataset, header, bytes) {
  const element = dataset.elements.x7fe00010;
  if (header.kind === "raw") {
    const part = bytes.subarray(element.dataOffset, element.dataOffset + element.length);
    return asValues(part, header, header.syntax.endsWith(".1.2.2"));
  }
  if (!element.encapsulatedPixelData) throw new UnreadableImage("its pixels are not compressed as it says");
  const frame = wholeFrame(dataset, element, bytes);
  try {
    if (header.kind === "jpeg") {
      const { data, width, height } = await decodeInBrowser(frame);
      checkFrame(width, height, header);
      return { grey: data };
    }
    const decode = { rle: decodeRle, lossless: decodeLossless, charls: decodeWasm, openJpeg: decodeWasm };
    return asValues(await decode[header.kind](frame, header), header, false);
  } catch (error) {
    if (error instanceof UnreadableImage) throw error;
    throw new UnreadableImage(`its pixels cannot be decoded: ${error.message || error}`);
  }
}

function wholeFrame(dataset, element, bytes) {
  const { dicomParser } = libraries, { fragments } = element;
  if (!fragments?.length) throw new UnreadableImage("the DICOM file is cut short");
  return dicomParser.readEncapsulatedPixelDataFromFragments(dataset, element, 0, fragments.length, fragments);
}

function checkFrame(width, height, header) {
  if (width !== header.width || height !== header.height) {
    throw new UnreadableImage(
      `the frame is ${width} x ${height} pixels, its header says ${header.width} x ${header.height}`,
    );
  }
}

/** Bytes to values of the bits that are stored, with their sign. */
function asValues(bytes, header, bigEndian) {
  const { allocated, bits, signed } = header;
  const count = bytes.length / (allocated / 8) | 0;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const values = new (signed ? Int32Array : Uint16Array)(count), unused = 32 - bits;
  for (let at = 0; at < count; at++) {
    const word = allocated === 16 ? view.getUint16(2 * at, !bigEndian) : bytes[at];
    values[at] = signed ? (word << unused) >> unused : (word << unused) >>> unused;
  }
  return values;
}

/** PS3.5, annex G: a segment of runs for each byte of a value, the highest first. */
function decodeRle(frame, header) {
  const view = new DataView(frame.buffer, frame.byteOffset, frame.byteLength);
  const size = header.allocated / 8, count = header.width * header.height;
  if (view.getUint32(0, true) !== size) throw new UnreadableImage("its RLE segments are damaged");
  const out = new Uint8Array(count * size);
  for (let segment = 0; segment < size; segment++) {
    let at = view.getUint32(4 + 4 * segment, true), written = 0;
    const put = (byte) => {
      if (written < count) out[written * size + size - 1 - segment] = byte;
      written++;
    };
    while (written < count) {
      if (at >= frame.length) throw new UnreadableImage("the DICOM file is cut short");
      const head = view.getInt8(at++);
      if (head >= 0) for (let n = 0; n <= head; n++) put(frame[at++]);
      else if (head > -128) {
        for (let n = 0; n <= -head; n++) put(frame[at]);
        at++;
      }
    }
  }
  return out;
}

function decodeLossless(frame, header) {
  const decoder = new libraries.LosslessJpeg();
  const size = header.allocated / 8;
  const found = decoder.decompress(frame.buffer, frame.byteOffset, frame.byteLength);
  checkFrame(decoder.frame.dimX, decoder.frame.dimY, header);
  const out = new Uint8Array(found);
  return out.length === header.width * header.height * size ? out : narrowed(out, header);
}

/** The decoder returns 16 bits for some frames of 8. */
function narrowed(out, header) {
  if (header.allocated === 8) return Uint8Array.from(new Uint16Array(out.buffer));
  throw new UnreadableImage("its pixels have another depth than the header says");
}

const wasmCodecs = new Map();

async function decodeWasm(frame, header) {
  if (!wasmCodecs.has(header.kind)) wasmCodecs.set(header.kind, await libraries[header.kind]());
  const codec = wasmCodecs.get(header.kind);
  const decoder = header.kind === "charls" ? new codec.JpegLSDecoder() : new codec.J2KDecoder();
  try {
    decoder.getEncodedBuffer(frame.length).set(frame);
    decoder.decode();
    const { width, height, bitsPerSample, componentCount } = decoder.getFrameInfo();
    checkFrame(width, height, header);
    const size = bitsPerSample > 8 ? 2 : 1;
    if (componentCount !== 1 || size * 8 > header.allocated) {
      throw new UnreadableImage("its pixels have another depth than the header says");
    }
    const out = decoder.getDecodedBuffer().slice();
    if (size * 8 === header.allocated) return out;
    return Uint8Array.from({ length: out.length * 2 }, (_, at) => (at % 2 ? 0 : out[at >> 1]));
  } finally {
    decoder.delete();
  }
}

function interleaved(values, header) {
  const bytes = Uint8Array.from(values);
  if (header.planar !== 1) return bytes;
  const count = header.width * header.height;
  return Uint8Array.from({ length: 3 * count }, (_, at) => bytes[(at % 3) * count + ((at / 3) | 0)]);
}

/** Modality, values of interest, presentation (PS3.4, N.2). */
function showGrey(dataset, header, stored, notes) {
  const padding = paddingOf(dataset, header, stored);
  const shown = padding && padding.map((is) => 1 - is);
  const values = modality(dataset, header, stored);
  const shape = (dataset.string("x20500020") || "").trim().toUpperCase();
  const inverted = header.photometric === "MONOCHROME1" || shape === "INVERSE";
  let image = valuesOfInterest(dataset, header, values, shown, inverted, notes);
  if (!image) {
    const { bytes, ranged } = toBytes(values, { shown, inverted, keep: header.bits >= 8 });
    image = bytes;
    if (ranged) notes.push("no window: scaled by the range of its values");
  }
  if (inverted) notes.push("stored inverted");
  if (padding) {
    image = image.map((value, at) => (padding[at] ? 0 : value));
    notes.push("padding shown black");
  }
  return image;
}

/** 1 where pixels are padding (PS3.3, C.7.5.1.1.2), or null. */
function paddingOf(dataset, header, stored) {
  if (!dataset.elements.x00280120) return null;
  const read = (tag) => asValue(dataset.uint16(tag), header);
  const value = read("x00280120");
  const limit = dataset.elements.x00280121 ? read("x00280121") : value;
  const [low, high] = [Math.min(value, limit), Math.max(value, limit)];
  const found = Uint8Array.from(stored, (v) => (v >= low && v <= high ? 1 : 0));
  return found.includes(1) ? found : null;
}

const asValue = (word, header) => (header.signed ? (word << 16) >> 16 : word);

function modality(dataset, header, stored) {
  const table = firstItem(dataset, "x00283000");
  if (table) return lookUp(table, stored, header).values;
  const slope = dataset.floatString("x00281053"), intercept = dataset.floatString("x00281052");
  if (slope === undefined && intercept === undefined) return stored;
  if ([slope, intercept].some((number) => number !== undefined && !Number.isFinite(number))) {
    throw new UnreadableImage("Rescale Slope or Intercept is damaged");
  }
  return Float32Array.from(stored, (v) => v * (slope ?? 1) + (intercept ?? 0));
}

/** Applies the first table or window; null if there is none that can be used. */
function valuesOfInterest(dataset, header, values, shown, inverted, notes) {
  const table = firstItem(dataset, "x00283010");
  const center = dataset.floatString("x00281050"), width = dataset.floatString("x00281051");
  let grey;
  try {
    if (table) {
      const { values: found, bits } = lookUp(table, values.map(Math.floor), header);
      grey = stretch(found, 0, 2 ** bits - 1);
    } else if (center === undefined && width === undefined) {
      return null;
    } else {
      grey = applyWindow(values, center, width, dataset.string("x00281056"));
      if ((dataset.string("x00281050") || "").includes("\\")) notes.push("the first of several windows");
    }
  } catch {
    notes.push("its window cannot be used");
    return null;
  }
  const pixels = () => (shown ? grey.filter((_, at) => shown[at]) : grey);
  if (inverted) {
    let low = 255, high = 0;
    for (const value of pixels()) {
      if (value < low) low = value;
      if (value > high) high = value;
    }
    grey = grey.map((value) => Math.min(Math.max(low + high - value, 0), 255));
  }
  const bytes = Uint8Array.from(grey, roundEven), seen = shown ? bytes.filter((_, at) => shown[at]) : bytes;
  if (seen.every((value) => value === seen[0])) {
    notes.push("its window cannot be used");
    return null;
  }
  return bytes;
}

/** A window (PS3.3, C.11.2.1.2 and C.11.2.1.3), 0 to 255. */
function applyWindow(values, center, width, named) {
  const name = (named || "LINEAR").trim().toUpperCase();
  if (![center, width].every(Number.isFinite)) throw new RangeError("a window of no numbers");
  if (name === "SIGMOID") {
    if (!(width > 0)) throw new RangeError("the width of a window must be above 0");
    return Float64Array.from(values, (v) => 127.5 * (1 + Math.tanh((2 * (v - center)) / width)));
  }
  if (name === "LINEAR") [center, width] = [center - 0.5, width - 1];
  else if (name !== "LINEAR_EXACT") throw new RangeError(`VOI LUT Function ${name}`);
  if (!(width > 0)) throw new RangeError("the width of a window must be above 0");
  return stretch(values, center - width / 2, center + width / 2);
}

/** Entries of a table for whole numbers, and the bits of an entry (C.11.1.1). */
function lookUp(table, values, header) {
  const word = (at) => table.uint16("x00283002", at);
  const count = word(0) || 65536, bits = word(2), element = table.elements.x00283006;
  const first = asValue(word(1), header);
  let entries = Array.from({ length: element.length >> 1 }, (_, at) => table.uint16("x00283006", at));
  if (entries.length < count && bits <= 8) entries = entries.flatMap((two) => [two & 255, two >> 8]);
  if (entries.length < count || !(bits >= 1 && bits <= 16)) throw new RangeError("a table cut short");
  const found = Uint16Array.from(values, (v) => entries[Math.min(Math.max(v - first, 0), count - 1)]);
  return { values: found, bits };
}

const firstItem = (dataset, tag) => dataset.elements[tag]?.items?.[0]?.dataSet;

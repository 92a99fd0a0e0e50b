// The network: loaded from the page itself, run by onnxruntime in this tab.
"use strict";

/** Bytes that the page holds as base64 of gzip. */
async function embedded(id) {
  const packed = Uint8Array.from(atob(document.getElementById(id).textContent.trim()), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

class Model {
  static async load(facts) {
    const { ort } = libraries;
    ort.env.wasm.wasmBinary = (await embedded("runtime")).buffer;
    ort.env.wasm.numThreads = 1; // more need headers that a file does not have
    const session = await ort.InferenceSession.create(await embedded("network"));
    const { view_threshold: threshold } = facts; // absent where the network has no view network beside it
    const weights = threshold && new Float32Array((await embedded("view")).buffer);
    return new Model(facts, session, weights ? new View(weights, Number(threshold)) : null);
  }

  constructor(facts, session, view) {
    Object.assign(this, { facts, session, view, size: Number(facts.image_size) });
  }

  /** Reads squares of bytes; sex is 1, 0 or -1 for all of them. Returns one object per square. */
  async read(squares, male) {
    const { Tensor } = libraries.ort, { size } = this;
    const pixels = new Uint8Array(squares.length * size * size);
    squares.forEach((square, at) => pixels.set(square, at * size * size));
    const inputs = { image: new Tensor("uint8", pixels, [squares.length, size, size, 1]) };
    if (this.session.inputNames.includes("male")) {
      inputs.male = new Tensor("int32", new Int32Array(squares.length).fill(male), [squares.length]);
    }
    const outputs = await this.session.run(inputs);
    return squares.map((_, at) =>
      Object.fromEntries(this.session.outputNames.map((name) => [name, Number(outputs[name].data[at])])),
    );
  }

  /**
   * How many months the age moves when a part of the square is covered by its mean grey
   * (occlusion, Zeiler & Fergus 2014); calls `progress` with the fraction done.
   */
  async occlusion(square, male, age, parts, progress) {
    const { size } = this, mean = Math.round(square.reduce((sum, v) => sum + v, 0) / square.length);
    const edge = (part) => Math.round((part * size) / parts);
    const covered = (row, column) => {
      const copy = square.slice();
      for (let y = edge(row); y < edge(row + 1); y++) {
        copy.fill(mean, y * size + edge(column), y * size + edge(column + 1));
      }
      return copy;
    };
    const moved = [];
    for (let row = 0; row < parts; row++) {
      const line = await this.read(Array.from({ length: parts }, (_, column) => covered(row, column)), male);
      moved.push(...line.map((found) => found.bone_age_months - age));
      progress((row + 1) / parts);
      await new Promise((resume) => setTimeout(resume)); // lets the page answer
    }
    return moved;
  }
}

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
    const model = new Model(facts, session, weights ? new View(weights, Number(threshold)) : null);
    await model.read([new Uint8Array(model.size ** 2)], -1); // the first run takes twice as long as others
    return model;
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
    return squares.map((_, at) => {
      const found = {};
      for (const name of this.session.outputNames) {
        const { data, dims } = outputs[name];
        if (name === "contributions") { // months, of each place of the last feature map
          const [, rows, columns] = dims, count = rows * columns;
          found[name] = { rows, columns, months: [...data.subarray(at * count, (at + 1) * count)] };
        } else {
          found[name] = Number(data[at]);
        }
      }
      return found;
    });
  }
}

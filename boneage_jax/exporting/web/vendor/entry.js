// What the page uses of others, as one object. build.sh bundles it.
import * as ort from "onnxruntime-web/wasm";
import * as dicomParser from "dicom-parser";
import { decode as decodePng } from "fast-png";
import { Decoder as LosslessJpeg } from "jpeg-lossless-decoder-js";
import openJpeg from "@cornerstonejs/codec-openjpeg/decodewasmjs";
import openJpegWasm from "@cornerstonejs/codec-openjpeg/decodewasm";
import charls from "@cornerstonejs/codec-charls/decodewasmjs";
import charlsWasm from "@cornerstonejs/codec-charls/decodewasm";

globalThis.libraries = {
  ort,
  dicomParser,
  decodePng,
  LosslessJpeg,
  openJpeg: () => openJpeg({ wasmBinary: openJpegWasm }),
  charls: () => charls({ wasmBinary: charlsWasm }),
};

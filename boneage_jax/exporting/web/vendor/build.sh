#!/usr/bin/env bash
# Makes libraries.js.gz, ort.wasm.gz and LICENSES.txt.gz beside it from npm, in the versions of package-lock.json.
# Only needed to change a version: users of the package need no npm.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cp "$here"/{entry.js,package.json,package-lock.json} "$folder"
cd "$folder"
npm ci --no-audit --no-fund
npx esbuild entry.js --bundle --minify --format=iife --platform=browser --legal-comments=none \
  --loader:.wasm=binary --external:fs --external:path --external:crypto \
  --define:import.meta.url=document.baseURI --outfile=libraries.js
gzip --best --no-name --stdout libraries.js > "$here/libraries.js.gz"
gzip --best --no-name --stdout node_modules/onnxruntime-web/dist/ort-wasm-simd-threaded.wasm > "$here/ort.wasm.gz"
part() { printf '\n==== %s\n\n' "$1"; }
{
  for name in dicom-parser fast-png fflate iobuffer jpeg-lossless-decoder-js @cornerstonejs/codec-charls \
    onnxruntime-web; do
    version=$(sed -n 's/^ *"version": "\(.*\)".*/\1/p' "node_modules/$name/package.json" | head -n 1)
    part "$name $version"
    license=$(find "node_modules/$name" -maxdepth 1 -iname 'license*' | head -n 1)
    cat "${license:-$here/onnxruntime-license.txt}" # its npm package has no copy
  done
  part '@cornerstonejs/codec-openjpeg, of the same source and licence as codec-charls'
  part 'CharLS, inside codec-charls'
  cat "$here/charls-license.txt"
  part 'OpenJPEG, inside codec-openjpeg'
  cat "$here/openjpeg-license.txt"
  part 'what onnxruntime is made of'
  gzip --decompress --stdout "$here/onnxruntime-notices.txt.gz"
} | gzip --best --no-name > "$here/LICENSES.txt.gz"

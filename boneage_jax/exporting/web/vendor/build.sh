#!/usr/bin/env bash
# Makes libraries.js.gz, ort.wasm.gz and LICENSES.txt beside it from npm, in the versions of package-lock.json.
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
{
  for name in onnxruntime-web dicom-parser fast-png fflate iobuffer jpeg-lossless-decoder-js \
    @cornerstonejs/codec-openjpeg @cornerstonejs/codec-charls; do
    version=$(node -p "require('./node_modules/$name/package.json').version" 2> /dev/null \
      || sed -n 's/^ *"version": "\(.*\)".*/\1/p' "node_modules/$name/package.json")
    printf '\n==== %s %s\n\n' "$name" "$version"
    license=$(find "node_modules/$name" -maxdepth 1 -iname 'license*' | head -n 1)
    # onnxruntime-web names the MIT licence, its package has no copy of it.
    cat "${license:-$here/onnxruntime-license.txt}"
  done
} > "$here/LICENSES.txt"

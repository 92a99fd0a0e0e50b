#!/usr/bin/env bash
# A training of EfficientNet-B4 on a GPU that is lent for minutes: its point of the curve.
#
# usage: benchmarks/studies/gpu_training.sh PACK.npz FOLDER [FLOPS]
#
# PACK.npz is what `python -m benchmarks.studies.pack_radiographs --size=256 --mebibytes=59` made of the
# RSNA set. FOLDER gets report.json, metrics.jsonl and the network in float16, to be read on the
# originals elsewhere (python -m boneage_jax.evaluate --workdir=FOLDER/network). FLOPS: 1e15 by default.
set -eu
usage="usage: benchmarks/studies/gpu_training.sh PACK.npz FOLDER [FLOPS]"
pack=$(realpath "${1:?$usage}")
folder=$(realpath -m "${2:?$usage}")
flops=${3:-1e15}
mkdir -p "$folder"
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export TFDS_DATA_DIR=$work/data

python -m benchmarks.studies.pack_radiographs --unpack="$pack" --output="$work/raw"
python -m boneage_jax.main --workdir="$work/run" --config=cls:rsna --config.budget_flops="$flops" \
  --config.model.pretrained= --config.model.drop_path_rate=0 --config.view_steps=0 \
  --config.optimizer.learning_rate=2e-3 --config.ema_decay=0.998 \
  --config.data.raw_dir="$work/raw" --config.data.config=256 --config.data.height=224 \
  --config.data.width=178 --config.data.locked_fraction=0.05475 \
  --config.evaluate_every=100 --config.select=latest
cp "$work/run/report.json" "$work/run/metrics.jsonl" "$folder"
python -m boneage_jax.publish --workdir="$work/run" --output="$folder/network"

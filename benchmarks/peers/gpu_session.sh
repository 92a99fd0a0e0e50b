#!/usr/bin/env bash
# EfficientNet-B4, 380 px, bfloat16, beside timm on the same GPU, in at most ten minutes.
#
# usage: benchmarks/peers/gpu_session.sh FOLDER
#
# Needs one GPU, jax[cuda12], and torch and timm (pip install 'boneage_jax[peers]'). FOLDER gets a raw
# file per part: training and inference at two batch sizes, then the input pipeline. The most telling
# part comes first and each has its own limit of time, so a short loan is of use as well.
set -u
folder=${1:?usage: benchmarks/peers/gpu_session.sh FOLDER}
mkdir -p "$folder"
cd "$(dirname "$0")/../.." || exit 1
contenders="ours;torch, channels last;torch, compiled, channels last"

step() { # mode, images per batch, seconds
  timeout "$3" python -m benchmarks.peers.train_step --model=b4 --size=380 --dtype=bfloat16 \
    --mode="$1" --batch="$2" --rounds=5 --steps=10 --only="$contenders" --together \
    --output="$folder/b4_380_$1_$2.csv" || echo "left out: $1 at $2 images"
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
step train 128 200
step inference 128 100
timeout 60 python -m benchmarks.peers.input --size=380 --batch=128 --rounds=3 \
  --output="$folder/input_380.csv" || echo "left out: input"
step train 64 150
step inference 64 80

#!/usr/bin/env bash
# EfficientNet-B4, 380 px, bfloat16, beside timm on the same GPU, in at most ten minutes.
#
# usage: benchmarks/peers/gpu_session.sh FOLDER
#
# Needs one GPU, jax[cuda12], and torch and timm (pip install 'boneage_jax[peers]'). FOLDER gets a raw
# file per part: training and inference at two batch sizes each. The most telling part comes first and
# each has its own limit of time, so a short loan is of use as well.
#
# On 16 cores beside an H200 a train step is ready after 75 to 160 s here and 100 to 190 s in PyTorch,
# the second batch of PyTorch after 40 (its kernels are cached), inference after 35 s. So two
# processes at a time: eight at once took longer than a loan, and their memory did not fit.
set -u
folder=${1:?usage: benchmarks/peers/gpu_session.sh FOLDER}
mkdir -p "$folder"
cd "$(dirname "$0")/../.." || exit 1
contenders="ours;torch, compiled, channels last"
# Products by cuBLAS alone: as fast (64.0 against 63.4 ms a step), and a third less to try out.
export XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_enable_triton_gemm=false"

step() { # mode, images per batch, seconds
  timeout "$3" python -m benchmarks.peers.train_step --model=b4 --size=380 --dtype=bfloat16 \
    --mode="$1" --batch="$2" --rounds=5 --steps=10 --only="$contenders" --together \
    --output="$folder/b4_380_$1_$2.csv" || echo "left out: $1 at $2 images"
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
step train 64 240
step inference 64 80
step inference 128 80
step train 128 200
